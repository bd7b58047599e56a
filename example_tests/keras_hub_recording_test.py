"""Recorded steps of KerasHub's models, beside the same steps run by Keras: `tox -e examples`."""

import logging

import keras
import numpy as np
import pytest

from keras_deepseek.models import enable_lora
from keras_deepseek.training import Trainer

keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")
pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others are compiled."),
    pytest.mark.filterwarnings("ignore"),
]
models = keras_hub.models

NUM_ROWS, LENGTH = 24, 8
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, 20, (NUM_ROWS, LENGTH))
MASK = np.ones((NUM_ROWS, LENGTH), "int32")
MASK[:, 6:] = RANDOM.integers(0, 2, (NUM_ROWS, 2))
TOKENS = {"token_ids": IDS, "padding_mask": MASK}
PAIRS = {f"{side}_{name}": x for side in ("encoder", "decoder") for name, x in TOKENS.items()}
SOUNDS = RANDOM.normal(size=(NUM_ROWS, 16, 4)).astype("float32")
IMAGES = RANDOM.random((NUM_ROWS, 32, 32, 3)).astype("float32")
NEXT, CLASSES = np.roll(IDS, -1, 1), RANDOM.integers(0, 2, NUM_ROWS)

SIZES = {"vocabulary_size": 20, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 16}
ENCODER = {**SIZES, "num_heads": 2, "dropout": 0.1}
DECODER = {**SIZES, "num_query_heads": 2, "num_key_value_heads": 1}
POSITIONS = {"max_sequence_length": LENGTH}
CLASSIFIER = {"num_classes": 2, "preprocessor": None}


def classify(backbone):
    outputs = backbone.output["decoder_sequence_output"]
    hidden = keras.layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(backbone.input, keras.layers.Dense(2)(hidden))


def gpt2():
    backbone = models.GPT2Backbone(**ENCODER, **POSITIONS)
    return models.GPT2CausalLM(backbone=backbone, preprocessor=None)


def gpt2_with_lora():
    model = gpt2()
    model.backbone.enable_lora(2)
    return model


def gpt2_with_our_lora():
    model = gpt2()
    enable_lora(model.backbone, rank=2)
    return model


def roberta():
    backbone = models.RobertaBackbone(**ENCODER, **POSITIONS)
    return models.RobertaTextClassifier(backbone=backbone, hidden_dim=8, **CLASSIFIER)


def distil_bert():
    backbone = models.DistilBertBackbone(**ENCODER, **POSITIONS)
    return models.DistilBertTextClassifier(backbone=backbone, hidden_dim=8, **CLASSIFIER)


def bart():
    backbone = models.BartBackbone(**ENCODER, **POSITIONS)
    return models.BartSeq2SeqLM(backbone=backbone, preprocessor=None)


def t5():
    return classify(models.T5Backbone(**ENCODER))


def whisper():
    lengths = {"max_encoder_sequence_length": 16, "max_decoder_sequence_length": LENGTH}
    return classify(models.WhisperBackbone(**ENCODER, num_mels=4, **lengths))


def llama():
    backbone = models.LlamaBackbone(**DECODER, dropout=0.1)
    return models.LlamaCausalLM(backbone=backbone, preprocessor=None)


def gemma():
    backbone = models.GemmaBackbone(**DECODER, head_dim=4)
    return models.GemmaCausalLM(backbone=backbone, preprocessor=None)


def mixtral():
    backbone = models.MixtralBackbone(**DECODER, num_experts=4, top_k=2)
    return models.MixtralCausalLM(backbone=backbone, preprocessor=None)


def vit():
    backbone = models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=16, num_layers=2, num_heads=2, hidden_dim=8,
        mlp_dim=16, dropout_rate=0.1, attention_dropout=0.1,
    )  # fmt: skip
    return models.ViTImageClassifier(backbone=backbone, **CLASSIFIER)


def resnet():
    backbone = models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 8],
        stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block",
        image_shape=(32, 32, 3),
    )  # fmt: skip
    return models.ResNetImageClassifier(backbone=backbone, **CLASSIFIER)


def dense_net():
    backbone = models.DenseNetBackbone(
        stackwise_num_repeats=[2, 2], compression_ratio=0.5, growth_rate=4, image_shape=(32, 32, 3)
    )
    return models.DenseNetImageClassifier(backbone=backbone, **CLASSIFIER)


CASES = [
    *((make, TOKENS, NEXT) for make in (gpt2, gpt2_with_lora, gpt2_with_our_lora)),
    *((make, TOKENS, NEXT) for make in (llama, gemma, mixtral)),
    *((make, TOKENS, CLASSES) for make in (roberta, distil_bert)),
    (bart, PAIRS, NEXT),
    (t5, PAIRS, CLASSES),
    (
        whisper,
        {"encoder_features": SOUNDS, "decoder_token_ids": IDS, "decoder_padding_mask": MASK},
        CLASSES,
    ),
    *((make, IMAGES, CLASSES) for make in (vit, resnet, dense_net)),
]


def train(make, x, y, *, is_eager):
    """Returns each step's loss, the weights, and what is predicted and evaluated with them."""
    keras.utils.set_random_seed(7)
    model = make()
    if is_eager:  # A model with a hook is not recorded.
        model.layers[-1].register_forward_hook(lambda *_: None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = Trainer(model, optimizer=keras.optimizers.AdamW(1e-3), loss=loss, seed=7)
    losses = [step.logs["loss"] for step in trainer.steps(x, y, batch_size=4, epochs=2)]
    predicted = trainer.predict(x, batch_size=4, verbose=0)
    return losses, model.get_weights(), predicted, trainer.evaluate(x, y, batch_size=4, verbose=0)


@pytest.mark.parametrize(("make", "x", "y"), CASES)
def test_a_recorded_training_is_an_eager_one_to_the_bit(make, x, y, caplog):
    expected = train(make, x, y, is_eager=True)
    with caplog.at_level(logging.INFO):
        received = train(make, x, y, is_eager=False)
    arrays, references = map(keras.tree.flatten, (received, expected))
    for array, reference in zip(arrays, references, strict=True):
        np.testing.assert_array_equal(array, reference)
    # Mixtral sends tokens to experts by numbers of a tensor.
    assert ("not recorded" in caplog.text) == (make is mixtral)

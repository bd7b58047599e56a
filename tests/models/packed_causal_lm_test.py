import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.callbacks import ExpertBalancing
from keras_deepseek.models import (
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
    DeepSeekV4CausalLM,
    DeepSeekV4Config,
    DeepSeekV32CausalLM,
    make_packed_model,
)
from keras_deepseek.testing import assert_close
from keras_deepseek.training import Trainer, pack_sequences
from tests.oracles.language_models import to_numpy
from tests.oracles.lora_models import make_model

DOCUMENTS = [np.array([3, 1, 4, 1]), np.array([5, 9]), np.array([2, 6, 5])]


def pack():
    documents = {
        "token_ids": [document[:-1] for document in DOCUMENTS],
        "targets": [document[1:] for document in DOCUMENTS],
    }
    return pack_sequences(documents, length=4)


def test_a_packed_document_has_the_logits_that_it_has_alone():
    model = make_model()
    packed = pack()
    targets = packed.pop("targets")
    logits = to_numpy(make_packed_model(model)(packed))
    num_matches = 0
    for document in DOCUMENTS:
        tokens = document[None, :-1]
        alone = to_numpy(model({"token_ids": tokens, "padding_mask": np.ones_like(tokens)}))[0]
        for row, segments in enumerate(packed["segment_ids"]):
            for segment in set(segments) - {0}:
                in_segment = segments == segment
                if np.array_equal(packed["token_ids"][row, in_segment], tokens[0]):
                    assert_close(logits[row, in_segment], alone, 2e-5)
                    np.testing.assert_array_equal(targets[row, in_segment], document[1:])
                    num_matches += 1
    assert num_matches == len(DOCUMENTS)


@pytest.mark.parametrize(
    "task",
    [DeepSeekV3CausalLM, DeepSeekV32CausalLM],
)
def test_further_tokens_have_the_loss_that_they_have_in_single_documents(task):
    model = make_model(task=task, num_prediction_layers=2)
    documents = [np.arange(1, 7), np.arange(9, 14), np.array([2, 6, 5, 8])]
    packed = pack_sequences({"token_ids": documents}, length=12)
    assert len(packed["token_ids"]) == 2
    rows = np.zeros((3, 6), "int32")
    for row, document in zip(rows, documents, strict=True):
        row[: len(document)] = document
    model({"token_ids": rows, "padding_mask": rows > 0}, training=True)
    (alone,) = map(to_numpy, model.losses)
    training_model = make_packed_model(model)
    training_model(packed, training=True)
    (together,) = map(to_numpy, training_model.losses)
    assert_close(together, alone, 1e-5)
    whole = dict(packed, segment_ids=np.minimum(packed["segment_ids"], 1))
    training_model(whole, training=True)
    assert abs(to_numpy(training_model.losses[0]) - alone) > 1e-3


@pytest.mark.parametrize("is_trainer", [False, True], ids=["fit", "trainer"])
def test_training_it_trains_the_model(is_trainer):
    model = make_model(num_prediction_layers=1)
    packed = pack()
    targets = packed.pop("targets")
    training_model = make_packed_model(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    arguments = {"optimizer": keras.optimizers.Adam(0.01), "loss": loss}
    if is_trainer:
        fitted = Trainer(training_model, **arguments, seed=0)
    else:
        training_model.compile(**arguments)
        fitted = training_model
    kernel = model.backbone.transformer_layers[0].attention.query_up.kernel
    old_kernel = to_numpy(kernel)
    history = fitted.fit(
        packed, targets, epochs=3, verbose=0, callbacks=[ExpertBalancing(0.01)]
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["largest_expert_load"][0] >= 1
    assert np.abs(to_numpy(kernel) - old_kernel).max() > 0


def test_its_loss_is_scaled_as_that_of_the_model():
    config = DeepSeekV3Config.from_preset("tiny", num_layers=1)
    packed = make_packed_model(DeepSeekV3CausalLM(config, dtype="mixed_float16"))
    assert packed.dtype_policy.name == "mixed_float16"


def test_another_model_is_refused():
    with pytest.raises(InvalidInputError, match="must be a language model"):
        make_packed_model(keras.Sequential())


def test_layers_that_mix_the_documents_of_a_row_are_refused():
    model = DeepSeekV4CausalLM(DeepSeekV4Config.from_preset("tiny"))
    with pytest.raises(NotSupportedError, match="DeepSeekV4CausalLM compresses the tokens"):
        make_packed_model(model)

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.quantized_layers import describe_quantized, quantize_again
from keras_deepseek.models import (
    BertConfig,
    BertMaskedLM,
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
    ResidualImageClassifier,
    ResidualImageClassifierConfig,
    SequentialRecommender,
    SequentialRecommenderConfig,
)

TOKENS = np.array([[3, 1, 4, 1]], "int32")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method"),
    pytest.mark.filterwarnings("ignore:The use of `x.T`"),  # Of Keras, for an embedding on torch.
]


def make_recommender():
    sizes = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "intermediate_dim": 8}
    return SequentialRecommender(SequentialRecommenderConfig(9, max_length=4, **sizes))


def make_language_model():
    return DeepSeekV3CausalLM(DeepSeekV3Config.from_preset("tiny", num_layers=1))


def make_bert():
    sizes = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "intermediate_dim": 8}
    return BertMaskedLM(BertConfig(vocabulary_size=11, max_length=4, **sizes))


def make_classifier():
    config = ResidualImageClassifierConfig.from_preset("tiny", num_classes=3, image_shape=(8, 8, 1))
    return ResidualImageClassifier(config)


def find_modes(model):
    return {path: how["mode"] for path, how in describe_quantized(model).items()}


TOKEN_INPUTS = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}


@pytest.mark.parametrize(
    ("make", "inputs", "mode"),
    [
        (make_recommender, {"item_ids": TOKENS}, "int8"),
        pytest.param(make_recommender, {"item_ids": TOKENS}, "int4", marks=pytest.mark.nightly),
        pytest.param(make_bert, TOKEN_INPUTS, "int8", marks=pytest.mark.nightly),
        pytest.param(make_language_model, TOKEN_INPUTS, "int8", marks=pytest.mark.nightly),
        (make_classifier, np.ones((1, 8, 8, 1)), "int8"),
    ],
    ids=["recommender", "recommender-int4", "bert", "v3", "images"],
)
def test_a_quantized_model_is_the_same_after_loading(make, inputs, mode, tmp_path):
    model = make()
    assert "quantized_layers" not in model.get_config()
    model.quantize(mode)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert find_modes(revived) == find_modes(model) != {}
    assert [weight.dtype for weight in revived.weights] == [
        weight.dtype for weight in model.weights
    ]
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(revived(inputs)), keras.ops.convert_to_numpy(model(inputs))
    )


@pytest.mark.nightly
def test_quantized_heads_compute_nearly_what_they_did():
    bert = make_bert()
    old_outputs = keras.ops.convert_to_numpy(bert(TOKEN_INPUTS))
    bert.quantize("int8")
    quantized_outputs = keras.ops.convert_to_numpy(bert(TOKEN_INPUTS))
    assert np.abs(quantized_outputs - old_outputs).max() < 0.05 * np.abs(old_outputs).max()


@pytest.mark.nightly
def test_a_quantized_recommender_has_nearly_the_loss_that_it_had():
    recommender = make_recommender()
    losses = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        training = recommender.make_training_model(num_negatives=8)
        training.compile("sgd")
        rows = {"item_ids": TOKENS, "targets": np.array([[1, 4, 1, 5]], "int32")}
        losses.append(training.evaluate(rows, verbose=0))
        if len(losses) == 1:
            recommender.quantize("int8")
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_layer_that_is_not_there_is_named():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="only")])
    with pytest.raises(InvalidInputError, match="has a layer 'other', quantized to 'int8'"):
        quantize_again(model, {"other": {"mode": "int8", "config": None}})

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.encoder.transformer_encoder import TransformerEncoderBlock
from keras_deepseek.testing import LayerTestCase, assert_close


def norm(x, layer):
    gamma, beta = (keras.ops.convert_to_numpy(weight) for weight in (layer.gamma, layer.beta))
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + layer.epsilon)
    return centred / scale * gamma + beta


def attend(x, layer, mask):
    def project(name):
        dense = getattr(layer, f"{name}_dense")
        kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in dense.weights)
        return np.einsum("btd,dhe->bhte", x, kernel) + bias[:, None]

    query, key, value = (project(name) for name in ("query", "key", "value"))
    scores = np.einsum("bhte,bhse->bhts", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in layer.output_dense.weights)
    return np.einsum("bhts,bhse,hed->btd", weights, value, kernel) + bias


def feed_forward(x, block):
    inner, outer = (
        [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
        for layer in (block.intermediate_dense, block.output_dense)
    )
    return np.maximum(x @ inner[0] + inner[1], 0) @ outer[0] + outer[1]


def oracle(block, inputs):
    x = np.asarray(inputs["inputs"], "float64")
    mask = np.broadcast_to(inputs["attention_mask"].astype(bool), (len(x), x.shape[1], x.shape[1]))
    if block.normalize_first:
        x = x + attend(norm(x, block.attention_norm), block.attention, mask)
        return x + feed_forward(norm(x, block.feed_forward_norm), block)
    x = norm(x + attend(x, block.attention, mask), block.attention_norm)
    return norm(x + feed_forward(x, block), block.feed_forward_norm)


def draw(rows=5, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((2, rows, 5)) < 0.6
    mask[..., 0] = True
    return {"inputs": rng.normal(size=(2, 5, 6)).astype("float32"), "attention_mask": mask}


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("rows", [5, 1])
def test_it_computes_the_formula(normalize_first, rows):
    block = TransformerEncoderBlock(
        3, 8, activation="relu", epsilon=1e-3, normalize_first=normalize_first
    )
    inputs = draw(rows)
    block(**inputs)
    rng = np.random.default_rng(1)
    block.set_weights([rng.normal(size=w.shape).astype("float32") for w in block.get_weights()])
    assert_close(keras.ops.convert_to_numpy(block(**inputs)), oracle(block, inputs))


@pytest.mark.parametrize("normalize_first", [False, True])
def test_it_passes_the_layer_routine(normalize_first):
    LayerTestCase().run_layer_test(
        TransformerEncoderBlock,
        {"num_heads": 2, "intermediate_dim": 6, "normalize_first": normalize_first},
        (2, 3, 4),
        supports_masking=False,
    )


def test_each_dropout_acts_in_training_alone():
    inputs = draw()
    for name in ("dropout", "attention_dropout"):
        block = TransformerEncoderBlock(2, 8, **{name: 0.5})
        expected = keras.ops.convert_to_numpy(block(**inputs))
        assert_close(keras.ops.convert_to_numpy(block(**inputs)), expected)
        dropped = keras.ops.convert_to_numpy(block(**inputs, training=True))
        assert np.abs(dropped - expected).max() > 1e-3


def test_heads_that_do_not_divide_the_inputs_are_refused():
    with pytest.raises(InvalidInputError, match="has 4 heads, which must divide"):
        TransformerEncoderBlock(4, 8)(np.zeros((1, 2, 6), "float32"))

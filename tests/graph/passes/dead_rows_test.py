import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.oracles.graph_rewriting import (
    check_equal,
    draw,
    kinds,
    randomize,
    rewrite,
    shapes_of,
)

LENGTH, DIM = 7, 8
PRODUCTS = ("Einsum", "Matmul", "DotProductAttention")


def block(x, attention=None):
    attention = layers.MultiHeadAttention(2, 4)(x, x) if attention is None else attention
    x = layers.LayerNormalization()(x + attention)
    return x + layers.Dense(DIM)(layers.Dense(12, activation="gelu")(x))


def computes_all_rows(optimized, length=LENGTH):
    """Returns True if each product has the whole sequence."""
    return all(length in shape for shape in shapes_of(optimized, *PRODUCTS))


def make(read, function=block, shape=(LENGTH, DIM)):
    inputs = keras.Input(shape)
    return randomize(keras.Model(inputs, read(function(inputs))))


READS = {
    "first": lambda x: x[:, 0],
    "last": lambda x: x[:, -1],
    "slice": lambda x: x[:, 2:4],
    "index of a tuple": lambda x: x[:, 3, :],
    "take": lambda x: ops.take(x, 1, axis=1),
}


@pytest.mark.parametrize("name", READS)
def test_computes_the_rows_that_are_read(name):
    model = make(READS[name], lambda x: block(block(x)))
    optimized = rewrite(model, draw(3, LENGTH, DIM), "unread_rows", mode="train")
    number = 2 if name == "slice" else 1
    last = shapes_of(optimized, *PRODUCTS)[-3:]
    assert last[0][1] == number
    assert last[1:] == [(None, number, 12), (None, number, DIM)]
    check_equal(model, optimized, *(draw(n, LENGTH, DIM) for n in (3, 1, 4)))
    check_equal(model, optimized, draw(4, LENGTH, DIM), gradients=True)


@pytest.mark.parametrize("name", ["first", "last"])
def test_sequences_of_any_length(name):
    model = make(READS[name], shape=(None, DIM))
    optimized = rewrite(model, draw(3, LENGTH, DIM), "unread_rows")
    assert not computes_all_rows(optimized)
    check_equal(model, optimized, draw(2, LENGTH, DIM), draw(1, 3, DIM), draw(4, 19, DIM))
    assert len(optimized.plan().axes) == 2


def test_causal_attention_with_a_padding_mask():
    inputs = [keras.Input((LENGTH, DIM)), keras.Input((LENGTH,), dtype="bool")]
    attention = layers.MultiHeadAttention(2, 4)(
        inputs[0], inputs[0], attention_mask=inputs[1][:, None, :], use_causal_mask=True
    )
    model = randomize(keras.Model(inputs, block(inputs[0], attention)[:, -3]))
    mask = np.arange(LENGTH) >= np.array([[0], [2], [4]])
    optimized = rewrite(model, [draw(3, LENGTH, DIM), mask], "unread_rows")
    assert not computes_all_rows(optimized)
    check_equal(model, optimized, *([draw(n, LENGTH, DIM), mask[:n]] for n in (3, 1)))


def test_masked_softmax_of_weights_that_are_not_fused():
    inputs = [keras.Input((LENGTH, DIM)), keras.Input((1, LENGTH), dtype="bool")]
    scores = ops.matmul(layers.Dense(DIM)(inputs[0]), ops.transpose(inputs[0], (0, 2, 1)))
    mask = ops.logical_or(inputs[1], ops.reshape(inputs[1], (-1, LENGTH, 1)))
    weights = layers.Softmax()(scores, mask=mask)
    model = randomize(keras.Model(inputs, ops.matmul(weights, inputs[0])[:, 1]))
    mask_array = np.arange(LENGTH) >= np.array([[[0]], [[2]], [[4]]])
    optimized = rewrite(model, [draw(3, LENGTH, DIM), mask_array], "unread_rows")
    assert not any(shape[1] == LENGTH for shape in shapes_of(optimized, *PRODUCTS))
    check_equal(model, optimized, *([draw(n, LENGTH, DIM), mask_array[:n]] for n in (3, 1)))


def rotated(x):
    """Rotary embeddings as KerasHub writes them, before a product."""
    x = ops.moveaxis(layers.EinsumDense("bsd,dhf->bshf", (None, 2, 4))(x), 3, -1)
    first, second = ops.split(x, 2, axis=-1)
    turned = ops.reshape(ops.stack((-second, first), axis=-2), (-1, LENGTH, 2, 4))
    angles = ops.cos(ops.reshape(ops.arange(4 * LENGTH, dtype="float32"), (1, LENGTH, 1, 4)))
    x = x * angles + turned * (1 - angles)
    x = ops.concatenate([x[..., 2:], x[..., :2]], axis=-1)
    return layers.Dense(DIM)(ops.reshape(x, (-1, LENGTH, DIM)))


def normalized(x):
    """A norm written out, as layers of Keras 3.13 are."""
    x = layers.Dense(DIM)(x)
    mean, variance = ops.moments(x, axes=-1, keepdims=True)
    x = (x - mean) * ops.rsqrt(variance + 1e-3)
    x = x / ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)
    return layers.Dense(3)(x - ops.expand_dims(ops.max(x, axis=-1), -1))


def reshaped(x):
    heads = ops.reshape(layers.Dense(DIM)(x), (-1, LENGTH, 2, 4))
    heads = ops.repeat(ops.transpose(heads, (0, 2, 1, 3)), 2, axis=1)
    return ops.swapaxes(ops.squeeze(heads[:, :1], axis=1), 1, 2)[:, :, None]


@pytest.mark.parametrize("function", [rotated, normalized])
def test_cuts_through_slices_norms_and_rotations(function):
    model = make(lambda x: x[:, 2], function)
    optimized = rewrite(model, draw(3, LENGTH, DIM), "unread_rows")
    assert all(LENGTH not in shape for shape in shapes_of(optimized, *PRODUCTS))
    check_equal(model, optimized, *(draw(n, LENGTH, DIM) for n in (3, 1, 4)))


def test_cuts_another_axis():
    model = make(lambda x: x[:, :, 0, 3], reshaped)
    optimized = rewrite(model, draw(3, LENGTH, DIM), "unread_rows")
    check_equal(model, optimized, *(draw(n, LENGTH, DIM) for n in (3, 1)))
    model = make(lambda x: x[..., 3], reshaped)
    check_equal(model, rewrite(model, draw(3, LENGTH, DIM), "unread_rows"), draw(2, LENGTH, DIM))


def test_training_through_dropout_draws_for_the_rows_that_are_left():
    model = make(lambda x: x[:, 0], lambda x: layers.Dropout(0.5)(layers.Dense(400)(x)))
    optimized = rewrite(model, draw(3, LENGTH, DIM), "unread_rows", mode="train")
    assert shapes_of(optimized, "Dropout", training=True) == [(None, 1, 400)]
    share = np.mean(ops.convert_to_numpy(optimized(draw(3, LENGTH, DIM), training=True)) == 0)
    assert 0.4 < share < 0.6


def self_product(x):
    x = layers.Dense(LENGTH)(x)
    return ops.matmul(x, x)


def two_reads(x):
    return ops.concatenate([x[:, 0], x[:, 1]], axis=-1)


STAY = {
    "batch axis": (lambda x: x[0], block),
    "two rows": (two_reads, block),
    "all but one": (lambda x: x[:, 1:], block),
    "every other row": (lambda x: x[:, ::2], block),
    "mean over rows": (lambda x: x[:, 0], lambda x: x - ops.mean(block(x), axis=1, keepdims=True)),
    "softmax over rows": (lambda x: x[:, 0], lambda x: ops.softmax(block(x), axis=1)),
    "sum along rows": (lambda x: x[:, -1], lambda x: ops.cumsum(block(x), axis=1)),
    "recurrent layer": (
        lambda x: x[:, -1],
        lambda x: layers.GRU(3, return_sequences=True)(block(x)),
    ),
    "noise of one shape": (
        lambda x: x[:, 0],
        lambda x: layers.GaussianNoise(0.1)(layers.LSTM(3, return_sequences=True)(x)),
    ),
    "one tensor on both sides": (lambda x: x[:, 0], self_product),
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name):
    model = make(*STAY[name])
    optimized = rewrite(model, draw(3, LENGTH, DIM), "unread_rows")
    assert computes_all_rows(optimized)
    check_equal(model, optimized, draw(3, LENGTH, DIM), draw(4, LENGTH, DIM))


def test_cut_values_that_others_read_whole_are_computed_once():
    inputs = keras.Input((LENGTH, DIM))
    hidden = layers.Dense(DIM)(inputs)
    model = randomize(keras.Model(inputs, [layers.Dense(3)(hidden)[:, 0], hidden]))
    optimized = rewrite(model, draw(3, LENGTH, DIM), "unread_rows")
    assert shapes_of(optimized, "Matmul") == [(None, LENGTH, DIM), (None, 1, 3)]
    assert kinds(optimized).count("Matmul") == 2
    check_equal(model, optimized, draw(3, LENGTH, DIM), draw(1, LENGTH, DIM))

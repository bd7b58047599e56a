import keras
import pytest
from keras import layers, ops

from keras_deepseek import backend
from tests.oracles.graph_rewriting import check_equal, draw, kinds, randomize, rewrite


def fused_kinds(model, batch, mode="inference"):
    return kinds(rewrite(model, batch, "attention", mode=mode), training=mode == "train")


def attention(query, key, value):
    scores = ops.einsum("bqhd,bkhd->bhqk", query, key) * 0.3
    return ops.einsum("bhqk,bkhe->bqhe", ops.softmax(scores), value)


def attention_by_matmul(query, key, value):
    query, key, value = (ops.transpose(heads, (0, 2, 1, 3)) for heads in (query, key, value))
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / 3
    return ops.transpose(ops.matmul(ops.softmax(scores), value), (0, 2, 1, 3))


@pytest.mark.parametrize("function", [attention, attention_by_matmul])
def test_makes_one_operation_of_scores_softmax_and_sum(function):
    inputs = [keras.Input((length, 2, 8)) for length in (25, 26)] + [keras.Input((26, 2, 4))]
    model = keras.Model(inputs, function(*inputs))
    batches = [[draw(n, 25, 2, 8), draw(n, 26, 2, 8), draw(n, 26, 2, 4)] for n in (3, 1, 4)]
    optimized = rewrite(model, batches[0], "attention", mode="train")
    is_fused = backend.current().compute.has_attention_kernel()
    assert ("DotProductAttention" in kinds(optimized)) == is_fused
    assert ("Softmax" in kinds(optimized)) != is_fused
    check_equal(model, optimized, *batches)
    check_equal(model, optimized, batches[2], gradients=True)


def test_stays_where_weights_are_read():
    inputs = keras.Input((9, 8))
    layer = layers.MultiHeadAttention(2, 4, dropout=0.1)
    weights = keras.Model(inputs, layer(inputs, inputs, return_attention_scores=True))
    assert "DotProductAttention" not in fused_kinds(weights, draw(2, 9, 8))
    plain = randomize(keras.Model(inputs, layer(inputs, inputs)))
    assert "DotProductAttention" not in fused_kinds(plain, draw(2, 9, 8), "train")
    assert "DotProductAttention" in fused_kinds(plain, draw(2, 9, 8))


def test_stays_where_the_softmax_is_over_queries():
    inputs = [keras.Input((25, 2, 8)) for _ in range(3)]
    scores = ops.einsum("bqhd,bkhd->bhqk", *inputs[:2])
    outputs = ops.einsum("bhqk,bkhe->bqhe", ops.softmax(scores, axis=2), inputs[2])
    model = keras.Model(inputs, outputs)
    assert "DotProductAttention" not in fused_kinds(model, [draw(2, 25, 2, 8) for _ in range(3)])


def test_stays_where_the_scores_are_small():
    inputs = [keras.Input((5, 2, 8)) for _ in range(3)]
    model = keras.Model(inputs, attention(*inputs))
    assert "DotProductAttention" not in fused_kinds(model, [draw(2, 5, 2, 8) for _ in range(3)])


def norm(**arguments):
    return layers.BatchNormalization(**arguments)


FOLDED = {
    "convolution": lambda x: norm()(layers.Conv2D(4, 3, use_bias=False)(x)),
    "convolution with bias": lambda x: norm(scale=False)(layers.Conv2D(4, 3)(x)),
    "depthwise convolution": lambda x: norm(center=False)(
        layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    ),
    "product": lambda x: norm()(layers.Dense(4)(x)),
}


@pytest.mark.each_backend
@pytest.mark.parametrize("name", FOLDED)
def test_folds_into_the_kernel(name):
    inputs = keras.Input((6, 6, 3))
    model = randomize(keras.Model(inputs, FOLDED[name](inputs)))
    optimized = rewrite(model, draw(2, 6, 6, 3), "batch_norm", mode="train")
    assert not {"BatchNorm", "BatchNormalization"} & set(kinds(optimized))
    check_equal(model, optimized, draw(2, 6, 6, 3), draw(5, 6, 6, 3))
    randomize(model)  # Nothing was computed ahead.
    check_equal(model, optimized, draw(1, 6, 6, 3))
    assert not optimized.plan(training=True).rewrites["batch_norm"]


def activated(x):
    return norm()(layers.Conv2D(4, 3, activation="relu")(x))


def read_twice(x):
    x = layers.Conv2D(4, 3)(x)
    return norm()(x) + x


def by_rows(x):
    return norm(axis=1)(layers.Conv2D(4, 3)(x))


def few_rows(x):
    return norm()(layers.Dense(30)(layers.Dense(20)(x[:, 0, 0])))


@pytest.mark.parametrize("function", [activated, read_twice, by_rows, few_rows])
def test_stays_where_kernel_and_norm_are_not_one_product_or_outputs_are_small(function):
    inputs = keras.Input((6, 6, 3))
    model = randomize(keras.Model(inputs, function(inputs)))
    optimized = rewrite(model, draw(2, 6, 6, 3), "batch_norm")
    assert "BatchNorm" in kinds(optimized)
    check_equal(model, optimized, draw(3, 6, 6, 3))

import keras
import pytest
from keras import layers

from tests.oracles.graph_rewriting import check_equal, draw, kinds, randomize, rewrite


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

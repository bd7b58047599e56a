"""Convolutions, pooling, normalizations and attention in ONNX files, beside Keras."""

import functools

import keras
import numpy as np
import pytest

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import check_operation

ops, layers = keras.ops, keras.layers
BACKEND = keras.backend.backend()
NO_DOUBLES = pytest.mark.skipif(BACKEND == "jax", reason="JAX has 64 bits on request alone")
IMAGE_AXES = {1: (1,), 2: (1, 2), 3: (1, 2, 3)}


def numbers(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def of_layer(layer):
    """A layer with random weights, as a function that builds it."""

    def function(*inputs):
        output = layer(*inputs)
        generator = np.random.default_rng(1)
        for variable in layer.variables:
            variable.assign(generator.uniform(0.2, 1, variable.shape))
        return output

    return function


def images(rank, channels=4, data_format="channels_last"):
    sizes = (9, 8, 7)[:rank]
    if data_format == "channels_first":
        return numbers(3, channels, *sizes)
    return numbers(3, *sizes, channels)


CONVOLUTIONS = {
    "valid": {},
    "same": {"padding": "same"},
    "same, even window": {"padding": "same", "kernel_size": 4},
    "strides": {"strides": 2},
    "same with strides": {"strides": 2, "padding": "same"},
    "same with strides beyond the window": {"strides": 3, "padding": "same", "kernel_size": 2},
    "dilation": {"dilation_rate": 2},
    "same with dilation": {"dilation_rate": 2, "padding": "same"},
    "no bias": {"use_bias": False},
    "activation": {"activation": "relu"},
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_is_that_of_keras(case, rank):
    kind = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    check_operation(
        of_layer(kind(**{"filters": 6, "kernel_size": 3} | CONVOLUTIONS[case])), images(rank)
    )


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    "case", ["valid", "same", "strides", "same with strides", "same with dilation"]
)
def test_a_convolution_takes_images_of_any_size(case, rank):
    kind = (layers.Conv1D, layers.Conv2D)[rank - 1]
    layer = kind(**{"filters": 6, "kernel_size": 3} | CONVOLUTIONS[case])
    check_operation(of_layer(layer), images(rank), free_axes=IMAGE_AXES[rank], lengths=(5, 6, 9))


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no such convolutions on CPUs")
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_convolution_with_the_channels_first(padding, rank):
    kind = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    layer = kind(6, 3, padding=padding, strides=2, data_format="channels_first")
    check_operation(of_layer(layer), images(rank, data_format="channels_first"))


@pytest.mark.parametrize("size", ["fixed size", "free size"])
def test_a_causal_convolution(size):
    layer = layers.Conv1D(6, 3, padding="causal", dilation_rate=2)
    check_operation(
        of_layer(layer), numbers(3, 9, 4), free_axes=(1,) if size == "free size" else ()
    )


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        pytest.param(layers.DepthwiseConv1D(3, depth_multiplier=2), 1, id="depthwise 1D"),
        pytest.param(layers.DepthwiseConv2D(3, strides=2, padding="same"), 2, id="depthwise 2D"),
        pytest.param(layers.DepthwiseConv2D(3, dilation_rate=2), 2, id="depthwise, dilation"),
        pytest.param(layers.SeparableConv1D(6, 3, depth_multiplier=2), 1, id="separable 1D"),
        pytest.param(layers.SeparableConv2D(6, 3, padding="same"), 2, id="separable 2D"),
    ],
)
def test_a_convolution_by_channel(layer, rank):
    check_operation(of_layer(layer), images(rank))


def test_convolutions_by_channel_of_two_kernels():
    def function(x):
        depth, point = numbers(3, 4, 2), numbers(1, 8, 5)
        return ops.depthwise_conv(x, depth, padding="same"), ops.separable_conv(x, depth, point)

    check_operation(function, images(1))


def test_a_batch_normalization_of_given_statistics():
    mean, variance, scale = numbers(4), numbers(4) ** 2, numbers(4, seed=1)
    check_operation(
        lambda x: ops.batch_normalization(x, mean, variance, -1, scale=scale), images(2)
    )


def test_a_kernel_that_is_computed():
    def function(x, kernel):
        return ops.conv(x, ops.reshape(ops.mean(kernel, axis=0), (3, 4, 2)), padding="same")

    x, kernel = numbers(3, 9, 4), numbers(3, 24, seed=1)
    check_operation(function, x, kernel)


POOLS = {
    "valid": {"pool_size": 2},
    "same": {"pool_size": 2, "padding": "same"},
    "same, stride 1": {"pool_size": 3, "strides": 1, "padding": "same"},
    "overlapping": {"pool_size": 3, "strides": 2},
    "beyond the window": {"pool_size": 2, "strides": 3, "padding": "same"},
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("case", POOLS)
def test_the_largest_of_a_window(case, rank):
    kind = (layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)[rank - 1]
    check_operation(kind(**POOLS[case]), images(rank))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("case", POOLS)
def test_the_average_of_a_window(case, rank):
    if BACKEND == "torch" and "same" in POOLS[case].values() and case != "same, stride 1":
        pytest.skip("Keras on PyTorch repeats the edge; the file follows TensorFlow and JAX")
    kind = (layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D)[rank - 1]
    check_operation(kind(**POOLS[case]), images(rank))


@pytest.mark.parametrize("case", ["valid", "same", "overlapping"])
def test_pooling_of_images_of_any_size(case):
    check_operation(
        layers.MaxPooling2D(**POOLS[case]), images(2), free_axes=(1, 2), lengths=(4, 6, 9)
    )


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(
            np.where(np.arange(8)[:, None] % 2, numbers(3, 8, 2), -np.inf), id="infinities"
        ),
        pytest.param(np.where(numbers(3, 8, 2) > 1, np.inf, numbers(3, 8, 2)), id="infinity"),
        pytest.param(np.full((3, 8, 2), np.finfo("float32").min), id="the lowest"),
    ],
)
def test_the_largest_of_extreme_numbers(array):
    check_operation(layers.MaxPooling1D(2, padding="same", strides=1), array.astype("float32"))


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch pools no integers")
def test_the_largest_of_integers():
    array = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 8, 2)).astype("int32")
    check_operation(lambda x: ops.max_pool(x, (2,), (2,)), array)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 4, 5, 11], ids=lambda count: f"to {count}")
@pytest.mark.parametrize(
    "pool", [ops.adaptive_max_pool, ops.adaptive_average_pool], ids=["Max", "Average"]
)
def test_adaptive_pooling(pool, count, rank):
    sizes = (8, 10, 9)[:rank]
    check_operation(
        lambda x: pool(x, (count,) * rank, data_format="channels_first"), numbers(3, 2, *sizes)
    )


def test_adaptive_pooling_with_the_channels_last_is_refused():
    with pytest.raises(NoEntryError, match="whose shape Keras does not know"):
        check_operation(layers.AdaptiveMaxPooling1D(2), numbers(3, 8, 2))


def test_adaptive_pooling_of_a_free_size_is_refused():
    with pytest.raises(NoEntryError, match="adaptive pooling of a free axis"):
        check_operation(
            lambda x: ops.adaptive_max_pool(x, (2, 2), "channels_first"),
            numbers(3, 2, 8, 8),
            free_axes=(2, 3),
        )


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(ops.softmax, id="softmax"),
        pytest.param(functools.partial(ops.softmax, axis=1), id="softmax of an inner axis"),
        pytest.param(layers.Softmax(axis=(1, 3)), id="softmax of two axes"),
        pytest.param(functools.partial(ops.log_softmax, axis=2), id="log_softmax"),
        pytest.param(ops.sparsemax, id="sparsemax"),
        pytest.param(functools.partial(ops.sparsemax, axis=1), id="sparsemax of an inner axis"),
    ],
)
@pytest.mark.parametrize(
    "scale", [1, 100, 1e-3, 3e38], ids=["plain", "far apart", "close", "overflowing"]
)
def test_softmax(function, scale):
    if scale == 3e38 and "sparsemax" in str(function):
        pytest.skip("its sums overflow on each backend, in another order")
    array = numbers(3, 4, 5, 6).clip(-1, 1) * np.float32(scale)
    check_operation(function, array, free_axes=(2,), tolerance=2e-5)


def test_softmax_of_infinities():
    array = numbers(4, 6)
    array[0, 2] = array[1] = -np.inf
    if BACKEND != "tensorflow":  # It gives zeros beside infinity, where PyTorch and JAX give NaN.
        array[2, 3] = np.inf
    array[3, 4] = np.nan
    check_operation(ops.softmax, array)
    check_operation(ops.log_softmax, array)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(layers.LayerNormalization, id="layer"),
        pytest.param(lambda: layers.LayerNormalization(axis=(2, 3)), id="layer, two axes"),
        pytest.param(lambda: layers.LayerNormalization(center=False), id="layer, no shift"),
        pytest.param(
            lambda: layers.LayerNormalization(center=False, scale=False), id="layer, no weights"
        ),
        pytest.param(layers.RMSNormalization, id="root mean square"),
        pytest.param(lambda: layers.GroupNormalization(2), id="group"),
        pytest.param(layers.BatchNormalization, id="batch"),
        pytest.param(lambda: layers.BatchNormalization(axis=1), id="batch, inner axis"),
        pytest.param(lambda: layers.BatchNormalization(scale=False), id="batch, no scale"),
        pytest.param(layers.UnitNormalization, id="unit"),
    ],
)
def test_a_normalization(layer, opset):
    check_operation(of_layer(layer()), numbers(3, 4, 5, 6) * 3 + 1, opset=opset, tolerance=2e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras on PyTorch raises for inner axes")
@pytest.mark.parametrize("axis", [1, (1, 2), (1, 3)], ids=str)
def test_a_normalization_of_inner_axes(axis):
    check_operation(of_layer(layers.LayerNormalization(axis=axis)), numbers(3, 4, 5, 6))


def test_a_normalization_of_a_free_axis():
    check_operation(lambda x: ops.layer_normalization(x, axis=-1), numbers(3, 4, 5), free_axes=(2,))
    check_operation(ops.rms_normalization, numbers(3, 4, 5), free_axes=(2,))


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("kind", [layers.LayerNormalization, layers.RMSNormalization])
def test_a_normalization_in_half_precision(kind, opset):
    array = numbers(3, 4, 6, dtype="float16")
    check_operation(of_layer(kind(dtype="float16")), array, opset=opset, tolerance=2e-3)


@NO_DOUBLES
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("is_centered", [True, False])
def test_a_normalization_in_double_precision(is_centered, opset):
    def function(x):
        operation = ops.layer_normalization if is_centered else ops.rms_normalization
        return operation(x, epsilon=2**-10)

    def reference(x):  # A model of float32 rounds its inputs in Keras.
        x = x - x.mean(-1, keepdims=True) if is_centered else x
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 2**-10)

    array = numbers(3, 4, 6, dtype="float64")
    check_operation(function, array, opset=opset, tolerance=1e-12, reference=reference)


def test_a_normalization_of_equal_numbers_and_of_large_ones():
    array = np.concatenate([np.full((1, 6), 7.0), np.zeros((1, 6)), numbers(1, 6) * 1e15])
    for layer in (layers.LayerNormalization(), layers.RMSNormalization()):
        check_operation(of_layer(layer), array.astype("float32"))


def heads(length, count=4, seed=0):
    return numbers(3, length, count, 8, seed=seed)


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize(
    ("count", "kwargs"),
    [
        pytest.param(4, {}, id="plain"),
        pytest.param(4, {"scale": 0.3}, id="scale"),
        pytest.param(4, {"is_causal": True}, id="causal"),
        pytest.param(2, {}, id="two heads of keys"),
        pytest.param(
            1,
            {},
            id="one head of keys",
            marks=pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras on TensorFlow raises"),
        ),
    ],
)
def test_attention(count, kwargs, opset):
    def function(query, key):
        return ops.dot_product_attention(query, key, ops.flip(key, axis=-1), **kwargs)

    check_operation(function, heads(5), heads(5, count, seed=1), free_axes=(1,), opset=opset)


@pytest.mark.parametrize("opset", [18, 24])
def test_attention_with_a_mask_that_hides_all_from_a_query(opset):
    def function(query, key, mask):
        return ops.dot_product_attention(query, key, key, mask=mask)

    mask = np.random.default_rng(0).random((3, 4, 5, 7)) > 0.4
    mask[1, 2, 3] = False
    check_operation(function, heads(5), heads(7, 2, seed=1), mask, opset=opset)


def test_attention_with_a_bias():
    def function(query, key, bias):
        return ops.dot_product_attention(query, key, key, bias=bias)

    check_operation(function, heads(5), heads(7, seed=1), numbers(3, 4, 5, 7, seed=2))


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda: layers.Dropout(0.5), id="dropout"),
        pytest.param(lambda: layers.SpatialDropout1D(0.5), id="spatial dropout"),
        pytest.param(lambda: layers.GaussianNoise(0.5), id="noise"),
        pytest.param(lambda: layers.AlphaDropout(0.5), id="alpha dropout"),
    ],
)
def test_nothing_is_dropped_at_inference(layer):
    check_operation(layer(), numbers(3, 4, 5))


@pytest.mark.parametrize(
    "dtype", ["int32", pytest.param("int64", marks=NO_DOUBLES), "uint8", "float32"]
)
def test_an_embedding(dtype):
    ids = np.random.default_rng(0).integers(0, 9, (3, 4)).astype(dtype)
    check_operation(of_layer(layers.Embedding(9, 6)), ids, free_axes=(1,))


@NO_DOUBLES
def test_a_convolution_of_double_precision_is_refused():
    layer = layers.Conv1D(2, 3, dtype="float64")
    with pytest.raises(NoEntryError, match="a convolution of float64"):
        check_operation(of_layer(layer), numbers(3, 8, 2, dtype="float64"))

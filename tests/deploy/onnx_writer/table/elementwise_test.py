"""Functions of one tensor in an ONNX file compute what Keras does, at edge values too."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import as_layer, check_operation

INF, NAN = np.inf, np.nan
NUMBERS = np.array(
    [[-3.5, -1.0, -0.0, 0.5, 1.5, 2.5], [1e-7, -1e-7, 4.0, -7.25, 0.25, 0.1]], "float32"
)
SPECIAL = np.array([[INF, -INF, NAN, 0.0, 1e30, -1e30, -100.0, 100.0, -1e4]], "float32")
INTEGERS = np.array([[-7, 7, -1, 0], [2**31 - 1, -(2**31), 2**30, 3]], "int32")
SMALL = np.array([[-128, 127, -1], [0, 100, -100]], "int8")
BYTES = np.array([[255, 0, 1], [200, 100, 7]], "uint8")
BOOLS = np.array([[True, False], [False, False]])

FUNCTIONS = (
    "abs", "absolute", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "cbrt",
    "ceil", "celu", "conjugate", "cos", "cosh", "deg2rad", "elu", "erf", "erfc", "exp", "exp2",
    "expm1", "fabs", "floor", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh",
    "isfinite", "isinf", "isnan", "isneginf", "isposinf", "leaky_relu", "log", "log10", "log1p",
    "log2", "log_sigmoid", "logical_not", "nan_to_num", "negative", "rad2deg", "real", "reciprocal",
    "relu", "relu6", "round", "rsqrt", "selu", "sigmoid", "sign", "signbit", "silu", "sin", "sinc",
    "sinh", "soft_shrink", "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "sqrt",
    "square", "squareplus", "stop_gradient", "tan", "tanh", "tanh_shrink", "trunc",
)  # fmt: skip
UNLIKE_ON_TORCH = {"hard_shrink", "sign", "soft_shrink"}
"""PyTorch's sign of NaN is 0, and its shrinkage NaN. The file follows NumPy, TensorFlow and JAX."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_of_floats(name):
    function, special = getattr(ops, name), SPECIAL
    if name in UNLIKE_ON_TORCH and keras.backend.backend() == "torch":
        special = SPECIAL[:, [0, 1, 3, 4, 5, 6, 7, 8]]
    check_operation(lambda *tensors: [function(x) for x in tensors], NUMBERS, special)


CASES = {
    "abs of int8": (ops.abs, SMALL),
    "abs of integers": (ops.abs, INTEGERS),
    "cast to bool": (lambda x: ops.cast(x, "bool"), SPECIAL),
    "cast to int32": (lambda x: ops.cast(x, "int32"), NUMBERS),
    "cast to uint8": (lambda x: ops.cast(x, "uint8"), INTEGERS),
    "ceil of integers": (ops.ceil, INTEGERS),
    "clip": (lambda x: ops.clip(x, -1, 1), SPECIAL),
    "clip bytes": (lambda x: ops.clip(x, 3, 150), BYTES),
    "clip integers": (lambda x: ops.clip(x, -4, 4), INTEGERS),
    "convert_to_tensor": (lambda x: ops.convert_to_tensor(x * 2, sparse=False), NUMBERS),
    "exact gelu": (lambda x: ops.gelu(x, approximate=False), NUMBERS),
    "exp of integers": (ops.exp, INTEGERS[:1]),
    "glu": (ops.glu, NUMBERS),
    "isnan of integers": (ops.isnan, INTEGERS),
    "log2 without rounding": (lambda x: ops.floor(ops.log2(x)), np.array([[8.0, 1e3]], "float32")),
    "nan_to_num with numbers": (lambda x: ops.nan_to_num(x, nan=3.0, posinf=5.0), SPECIAL),
    "negative of integers": (ops.negative, INTEGERS),
    "relu layer from a threshold": (keras.layers.ReLU(threshold=1.0), NUMBERS),
    "relu layer to a maximum": (keras.layers.ReLU(2.0, negative_slope=0.1), NUMBERS),
    "relu layer with all": (keras.layers.ReLU(2.0, negative_slope=0.1, threshold=1.0), NUMBERS),
    "relu of integers": (ops.relu, INTEGERS),
    "round to a decimal": (lambda x: ops.round(x, 1), NUMBERS),
    "round to tens": (lambda x: ops.round(x, -1), NUMBERS * 10),
    "saturate bytes": (
        lambda x: ops.saturate_cast(x, "uint8"),
        np.array([[-5.5, 300.0, 254.6, INF]], "float32"),
    ),
    "saturate int32 to int32": (lambda x: ops.saturate_cast(x, "int32"), INTEGERS),
    "saturate integers": (lambda x: ops.saturate_cast(x, "int8"), INTEGERS),
    "sign of integers": (ops.sign, INTEGERS),
    "square of bool": (ops.square, BOOLS),
    "square of integers": (ops.square, INTEGERS),
    "threshold": (lambda x: ops.threshold(x, 0.5, 9.0), NUMBERS),
}


@pytest.mark.parametrize("case", CASES)
def test_function(case):
    check_operation(*CASES[case])


def test_saturation_is_a_number_that_the_float_holds():
    # Keras casts 2^31, which overflows. The file has the largest float32 below.
    numbers = np.array([[-5.5, 3e10, -3e10, 7.0]], "float32")
    largest = 2**31 - 128

    def saturate(x):
        return ops.saturate_cast(x, "int32")

    def reference(x):
        return np.clip(x.astype("float64"), -(2**31), largest).astype("int32")

    check_operation(saturate, numbers, reference=reference)


def test_rounded_integers_stay():
    # On PyTorch, Keras rounds them as floats.
    check_operation(ops.round, INTEGERS, reference=lambda x: x)


def test_half_precision():
    numbers, special = NUMBERS.astype("float16"), SPECIAL[:, :4].astype("float16")

    def function(x, y):
        return ops.gelu(x), ops.log2(ops.abs(x) + 1), ops.isfinite(y)

    check_operation(function, numbers, special, tolerance=2e-3)


def test_gelu_is_an_operator_from_opset_20():
    proto = check_operation(ops.gelu, NUMBERS, opset=20)
    assert [node.op_type for node in proto.graph.node] == ["Gelu"]


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (lambda x: ops.clip(x, 0.5, 2.5), INTEGERS),
        (lambda x: ops.round(x, -1), INTEGERS),
        (ops.sigmoid, INTEGERS),
        (keras.layers.ReLU(2.0), INTEGERS),
        (lambda x: ops.threshold(x, 0.5, 0), INTEGERS),
    ],
)
def test_functions_of_integers_without_meaning_are_refused(function, numbers):
    with pytest.raises(NoEntryError):
        check_operation(function, numbers)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it takes no size as a float")
def test_a_bound_follows_a_free_size():
    function = as_layer(lambda x: ops.clip(x, 0, ops.shape(x)[1] - 1))
    check_operation(function, np.full((3, 5), 100, "float32"), free_axes=[1])

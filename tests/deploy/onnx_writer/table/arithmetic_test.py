"""Elementwise operations of several tensors in an ONNX file compute what Keras does."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import check_operation

INF, NAN = np.inf, np.nan
X = np.array(
    [
        [-3.5, -1.0, -0.0, 0.5, 1.5, 2.5],
        [INF, -INF, NAN, 0.0, 2.0, -2.0],
        [-3.5, 1.0, 0.0, 0.0, -0.0, 1e30],
    ],
    "float32",
)
Y = np.array(
    [
        [-1.0, 3.0, -0.0, 0.5, 0.1, INF],
        [INF, -INF, NAN, 0.0, 0.5, INF],
        [2.0, -INF, 0.0, NAN, 0.0, -3.0],
    ],
    "float32",
)
I = np.array(  # noqa: E741
    [[-7, 7, -1, 0, 5, -5], [2**31 - 1, -(2**31), 2**30, 3, -3, 1], [4, 4, 4, 4, 4, 4]], "int32"
)
J = np.array([[2, -3, 5, -1, 1, 3], [3, -1, 2, -2, -1, 5], [-5, 4, 1, 9, 7, 2]], "int32")
SMALL = np.array([[-128, 127, -1], [0, 100, -100]], "int8")
SMALL_DIVISORS = np.array([[3, -1, 2], [5, -7, 127]], "int8")
BYTES = np.array([[255, 0, 1], [200, 100, 7]], "uint8")
BYTE_DIVISORS = np.array([[3, 1, 2], [5, 255, 127]], "uint8")
BOOLS = np.array([[True, False, True, False]]), np.array([[True, True, False, False]])
SHIFTS = np.array([[0, 1, 3, 31, 4, 2]] * 3, "int32")

FLOATS = (
    "add", "arctan2", "divide", "divide_no_nan", "equal", "fmax", "fmin", "fmod", "greater",
    "greater_equal", "less", "less_equal", "logaddexp", "logaddexp2", "logical_and", "logical_or",
    "logical_xor", "maximum", "minimum", "mod", "multiply", "not_equal", "power", "subtract",
    "true_divide",
)  # fmt: skip
INTEGERS = (
    "add", "bitwise_and", "bitwise_or", "bitwise_xor", "divide", "equal", "floor_divide", "fmax",
    "greater", "hypot", "less_equal", "logical_and", "maximum", "minimum", "mod", "multiply",
    "subtract",
)  # fmt: skip
LOGICAL = (
    "add", "bitwise_and", "bitwise_or", "bitwise_xor", "equal", "less_equal", "logical_xor",
    "maximum", "multiply",
)  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name):
    check_operation(getattr(ops, name), X, Y)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    function = getattr(ops, name)

    def pairs(*x):
        return [function(x[index], x[index + 1]) for index in (0, 2, 4)]

    check_operation(pairs, I, J, SMALL, SMALL_DIVISORS, BYTES, BYTE_DIVISORS)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow adds no bools")
@pytest.mark.parametrize("name", LOGICAL)
def test_bools(name):
    check_operation(getattr(ops, name), *BOOLS)


def test_comparison_of_a_byte_with_a_number():
    check_operation(lambda x: x < 7, BYTES)


CASES = {
    "add a float to integers": (lambda x: x + 0.5, J),
    "add a number to bytes": (lambda x: x + 100, BYTES),
    "bitwise_invert": (ops.bitwise_invert, I),
    "bitwise_left_shift": (ops.bitwise_left_shift, I, SHIFTS),
    "bitwise_not": (ops.bitwise_not, I),
    "bitwise_right_shift": (ops.bitwise_right_shift, I, SHIFTS),
    "floor_divide by a number": (lambda x: ops.floor_divide(x, -3), I),
    "floor_divide by minus 1": (lambda x: ops.floor_divide(x, -1), I),
    "isin": (lambda x: ops.isin(x, np.array([4, 5], "int32")), I),
    "isin inverted": (lambda x: ops.isin(x, np.array([4, 5], "int32"), invert=True), I),
    "ldexp": (ops.ldexp, X[:1], SHIFTS[:1]),
    "left_shift": (ops.left_shift, I, SHIFTS),
    "mod of floats by a number": (lambda x: ops.mod(x, -3.0), X),
    "mod of integers by a number": (lambda x: ops.mod(x, -3), I),
    "number to a power": (lambda x: 2.0**x, X),
    "power of integers by 0": (lambda x: x**0, I),
    "power of integers overflows": (lambda x: x**3, I),
    "power of small integers overflows": (lambda x: ops.power(x, 7), SMALL),
    "right_shift": (ops.right_shift, I, SHIFTS),
    "right_shift of bytes": (lambda x: ops.right_shift(x, 1), BYTES),
    "select": (lambda x: ops.select([x > 1, x > 0], [x, x * 2], -1), X),
    "where": (lambda x: ops.where(x > 0, x, 0), I),
    "where of bools": (lambda x, y: ops.where(x, y, x), *BOOLS),
    "where of small integers": (lambda x: ops.where(x > 0, x, 3), SMALL),
}


@pytest.mark.parametrize("case", CASES)
def test_operation(case):
    check_operation(*CASES[case])


DIVISORS_OF_ALL_KINDS = np.array([[0, 0, 0, 0, 2, -1], [0, -1, 3, 1, -1, 0], [0, 3, -3, 5, 9, 1]])


REFERENCES = {
    # What NumPy does, where Keras's backends differ: all of integers divided by 0.
    "floor_divide by 0": (ops.floor_divide, np.floor_divide, I, DIVISORS_OF_ALL_KINDS),
    "mod by 0": (ops.mod, np.mod, I, DIVISORS_OF_ALL_KINDS),
    "fmod by 0": (ops.fmod, np.fmod, I, DIVISORS_OF_ALL_KINDS),
    "fmod of integers": (ops.fmod, np.fmod, I, J),  # TensorFlow rounds down.
    "fmod of integers by a number": (lambda x: ops.fmod(x, -3), lambda x: np.fmod(x, -3), I),
    "floor_divide": (ops.floor_divide, np.floor_divide, X, Y),  # TensorFlow rounds 1.5 / 0.1 up.
    "heaviside": (ops.heaviside, np.heaviside, X, Y),  # PyTorch has 0 at NaN.
    "hypot": (ops.hypot, np.hypot, X[[0, 2]], Y[[0, 2]]),  # TensorFlow has NaN of infinities.
    "isclose": (ops.isclose, np.isclose, X, Y),  # On TensorFlow all is close to infinity.
    "left_shift by all bits": (  # TensorFlow shifts by 31 at most.
        lambda x: ops.left_shift(x, 40), lambda x: x * 0, I,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFERENCES)
def test_operation_follows_numpy(case):
    function, reference, *arrays = REFERENCES[case]
    arrays = [array.astype("int32") if array.dtype == "int64" else array for array in arrays]

    def quietly(*arrays):
        with np.errstate(all="ignore"):
            return reference(*arrays)

    check_operation(function, *arrays, reference=quietly)


def test_isclose_of_nan():
    def reference(x):
        return np.isclose(x, x, equal_nan=True)

    check_operation(lambda x: ops.isclose(x, x, equal_nan=True), X, reference=reference)


def test_channels_that_come_first_stay():
    image = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
    layer = keras.layers.Conv2D(4, 3)
    scale = np.arange(4, dtype="float32")
    bias = np.arange(16, dtype="float32").reshape(1, 1, 4, 4)[:, :, :, :]

    def function(x):
        y = layer(x)
        return ops.sum(ops.relu(y * scale + bias) - 2.0, axis=(1, 2))

    proto = check_operation(function, image)
    assert [node.op_type for node in proto.graph.node].count("Transpose") == 1


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (ops.power, (I, J)),
        (lambda x: ops.power(x, np.array([1, 2, 3, 4, 5, 6], "int32")), (I,)),
        (lambda x: ops.floor_divide(x > 0, x > 1), (I,)),
    ],
)
def test_operations_without_a_right_form_are_refused(function, arrays):
    with pytest.raises(NoEntryError):
        check_operation(function, *arrays)

"""Operations on shapes, written as ONNX, compute what Keras computes."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.graph.size_expressions import OneSizeError
from tests.oracles.operation_case import as_layer, check_operation

X = np.arange(60, dtype="float32").reshape(3, 4, 5)
SQUARE = np.arange(48, dtype="float32").reshape(3, 4, 4)
ROWS = np.arange(12, dtype="int32").reshape(3, 4)
EMPTY = np.zeros((3, 0, 5), "float32")
IMAGES = np.arange(3 * 6 * 5 * 2, dtype="float32").reshape(3, 6, 5, 2)
BOOLEAN = X % 3 == 0

CASES = {
    "reshape that merges axes": (lambda x: ops.reshape(x, (-1, 20)), X),
    "reshape to a scalar a row": (lambda x: ops.reshape(x[:, 0, 0], (-1, 1, 1)), X),
    "reshape of an empty axis": (lambda x: ops.reshape(x, (ops.shape(x)[0], 5, 0)), EMPTY),
    "ravel": (ops.ravel, X),
    "ravel of an empty axis": (ops.ravel, EMPTY),
    "transpose by default": (ops.transpose, X),
    "transpose by negative axes": (lambda x: ops.transpose(x, (-3, -1, 1)), X),
    "swapaxes": (lambda x: ops.swapaxes(x, -1, 1), X),
    "moveaxis": (lambda x: ops.moveaxis(x, (-1, 0), (1, -1)), X),
    "moveaxis of one": (lambda x: ops.moveaxis(x, 1, -1), X),
    "rot90": (lambda x: ops.rot90(x, 1, (1, 2)), X),
    "rot90 backwards": (lambda x: ops.rot90(x, -1, (2, 1)), X),
    "rot90 twice": (lambda x: ops.rot90(x, 2, (1, 2)), SQUARE),
    "rot90 four times": (lambda x: ops.rot90(x, 4, (1, 2)), SQUARE),
    "expand_dims at the end": (lambda x: ops.expand_dims(x, -1), X),
    "expand_dims of several": (lambda x: ops.expand_dims(x, (1, -2)), X),
    "squeeze of a negative axis": (lambda x: ops.squeeze(x, -1), X[..., :1]),
    "squeeze of several": (lambda x: ops.squeeze(x, (1, -1)), X[:, :1, :1]),
    "broadcast_to": (lambda x: ops.broadcast_to(x, (ops.shape(x)[0], 4, 5)), X[:, :1]),
    "broadcast_to more axes": (lambda x: ops.broadcast_to(x, (2, ops.shape(x)[0], 4, 5)), X),
    "concatenate at the end": (lambda x: ops.concatenate([x, x[..., 1:2]], -1), X),
    "concatenate in the batch": (lambda x: ops.concatenate([x, x], 0), X),
    "concatenate of two dtypes": (lambda x: ops.concatenate([x, ops.cast(x, "int32")], 1), X),
    "append flat": (lambda x: ops.append(x, x), X),
    "append along an axis": (lambda x: ops.append(x, x[:, :1], 1), X),
    "hstack": (lambda x: ops.hstack([x, x]), X),
    "vstack": (lambda x: ops.vstack([x, x]), X),
    "dstack": (lambda x: ops.dstack([x, x]), X),
    "dstack of matrices": (lambda x: ops.dstack([x, x]), ROWS),
    "stack at the end": (lambda x: ops.stack([x, x + 1], -1), X),
    "stack in front": (lambda x: ops.stack([x, x + 1], 0), X),
    "flip of all": (ops.flip, X),
    "fliplr": (ops.fliplr, X),
    "flipud": (ops.flipud, X),
    "flip of negative axes": (lambda x: ops.flip(x, (-1, 1)), X),
    "flip of an empty axis": (lambda x: ops.flip(x, 1), EMPTY),
    "roll beyond the size": (lambda x: ops.roll(x, 7, 1), X),
    "roll backwards": (lambda x: ops.roll(x, -2, -1), X),
    "roll of several axes": (lambda x: ops.roll(x, (1, -3), (1, 2)), X),
    "roll of an axis twice": (lambda x: ops.roll(x, (1, 2), (1, 1)), X),
    "roll of the batch": (lambda x: ops.roll(x, 5, 0), X),
    "roll of the batch by one": (lambda x: ops.roll(x, -1, 0), X),
    "roll flat": (lambda x: ops.roll(x, 7), X),
    "roll of an empty axis": (lambda x: ops.roll(x, 1, 1), EMPTY),
    "tile": (lambda x: ops.tile(x, (1, 2, 3)), X),
    "tile by fewer numbers": (lambda x: ops.tile(x, (2,)), X),
    "tile by more numbers": (lambda x: ops.tile(x, (2, 1, 1, 3)), X),
    "repeat": (lambda x: ops.repeat(x, 3, 1), X),
    "repeat of the batch": (lambda x: ops.repeat(x, 2, 0), X),
    "repeat at the end": (lambda x: ops.repeat(x, 2, -1), X),
    "repeat flat": (lambda x: ops.repeat(x, 2), X),
    "repeat never": (lambda x: ops.repeat(x, 0, 1), X),
    "repeat of an empty tensor": (lambda x: ops.repeat(x, 2, 2), EMPTY),
    "repeat of booleans": (lambda x: ops.repeat(x, 2, 2), BOOLEAN),
    "pad by a value": (lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=-7), X),
    "pad of booleans": (lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 3))), BOOLEAN),
    "pad of the batch": (lambda x: ops.pad(x, ((1, 2), (0, 0), (0, 0))), X),
    "pad by nothing": (lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0))), X),
    "pad in a circle of reflections": (
        lambda x: ops.pad(x, ((0, 0), (0, 0), (4, 2)), "reflect"),
        X,
    ),
    "pad all by reflection": (lambda x: ops.pad(x, ((0, 0), (3, 1), (4, 2)), "reflect"), X),
    "pad symmetrically by one": (lambda x: ops.pad(x, ((0, 0), (0, 0), (1, 1)), "symmetric"), X),
}
JAX_ALONE = {
    "pad by the edge": (lambda x: ops.pad(x, ((0, 0), (3, 1), (0, 7)), "edge"), X),
    "pad by wrapping": (lambda x: ops.pad(x, ((0, 0), (5, 1), (0, 7)), "wrap"), X),
    "pad by several reflections": (lambda x: ops.pad(x, ((0, 0), (9, 1), (0, 7)), "reflect"), X),
}
NOT_ON_TORCH = {  # Keras pads symmetrically as by the edge there.
    "pad symmetrically": (lambda x: ops.pad(x, ((0, 0), (4, 2), (0, 5)), "symmetric"), X),
}
if keras.backend.backend() == "jax":
    CASES |= JAX_ALONE
if keras.backend.backend() != "torch":
    CASES |= NOT_ON_TORCH


@pytest.mark.parametrize("case", CASES)
def test_an_operation_on_shapes_computes_what_keras_does(case):
    function, array = CASES[case]
    check_operation(as_layer(function), array)


FREE = {
    "reshape that merges free axes": lambda x: ops.reshape(x, (-1, ops.shape(x)[-1])),
    "reshape that splits": lambda x: ops.reshape(x, (-1, ops.shape(x)[1], 5, 1)),
    "transpose": lambda x: ops.transpose(x, (2, 0, 1)),
    "broadcast_to": lambda x: ops.broadcast_to(x[:, :1], ops.shape(x)),
    "concatenate of cuts": lambda x: ops.concatenate([x[:, 1:], x[:, :1]], 1),
    "stack": lambda x: ops.stack([x, x], 2),
    "flip": lambda x: ops.flip(x, (0, 1)),
    "roll": lambda x: ops.roll(x, 3, 1),
    "roll by one": lambda x: ops.roll(x, 1, 1),
    "roll flat": lambda x: ops.roll(x, 3),
    "tile": lambda x: ops.tile(x, (1, 2, 1)),
    "repeat": lambda x: ops.repeat(x, 3, 1),
    "rot90": lambda x: ops.rot90(x, 1, (1, 2)),
    "pad": lambda x: ops.pad(x, ((0, 0), (2, 1), (0, 0))),
    "pad by one reflection": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0)), "reflect"),
}


@pytest.mark.parametrize("case", FREE)
def test_a_free_axis_may_have_any_size(case):
    check_operation(as_layer(FREE[case]), X, free_axes=[1])


IN_LAYOUT = {
    "transpose": lambda x: ops.transpose(x, (0, 3, 1, 2)),
    "concatenate of channels": lambda x: ops.concatenate([x, 2 * x], -1),
    "concatenate with others": lambda x: ops.concatenate([x, ops.ones_like(x)], 1),
    "flip": lambda x: ops.flip(x, (1, -1)),
    "roll": lambda x: ops.roll(x, (1, 2), (2, 3)),
    "repeat": lambda x: ops.repeat(ops.repeat(x, 2, 1), 3, -1),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (3, 0))),
    "pad by reflection": lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), "reflect"),
    "split of channels": lambda x: ops.split(x, (1,), -1),
    "get_item": lambda x: x[:, 1:, 0],
    "moveaxis": lambda x: ops.moveaxis(x, 1, 3),
}


@pytest.mark.parametrize("case", IN_LAYOUT)
def test_channels_may_come_first(case):
    function = IN_LAYOUT[case]
    check_operation(lambda x: function(ops.average_pool(x, 2, 1)), IMAGES)


DTYPES = ["bool", "int8", "uint8", "int16", "float16"]
WIDE_DTYPES = ["int64", "float64"] if keras.backend.backend() != "jax" else []


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [*DTYPES, *WIDE_DTYPES])
def test_shapes_of_any_dtype(dtype):
    def function(x):
        x = ops.roll(ops.repeat(x, 2, 1), 3, 2)
        return ops.pad(ops.tile(x, (1, 1, 2)), ((0, 0), (1, 1), (0, 0)))

    check_operation(function, X.astype(dtype))


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras raises an error there")
def test_an_axis_is_repeated_by_several_numbers():
    check_operation(lambda x: ops.repeat(x, np.array([1, 0, 2, 1]), 1), X)


def test_a_free_axis_is_not_repeated_by_several_numbers():
    with pytest.raises(OneSizeError):
        check_operation(lambda x: ops.repeat(x, [1, 2, 3, 0, 1], 0), np.resize(X, (5, 4)))

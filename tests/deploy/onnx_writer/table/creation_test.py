"""Tensors of sizes and numbers alone, written as ONNX, are those of Keras."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import as_layer, check_operation

X = np.arange(28, dtype="float32").reshape(2, 7, 2) - 3

LIKE = {
    "zeros_like": ops.zeros_like,
    "ones_like": lambda x: ops.ones_like(x, dtype="int32"),
    "full_like": lambda x: ops.full_like(x, 2.5),
    "full_like of a tensor": lambda x: ops.full_like(x, ops.max(x)),
    "empty_like in size": lambda x: 0 * ops.zeros_like(x, dtype="bool"),
    "linspace": lambda x: ops.linspace(x, x + 3, 5),
    "linspace without its end": lambda x: ops.linspace(x, x + 3, 4, endpoint=False),
    "linspace of one": lambda x: ops.linspace(x, x + 3, 1) if _can_be_one() else x,
}


def _can_be_one():
    return keras.backend.backend() != "torch"  # PyTorch divides by zero.


def of_sizes(x):
    length = ops.shape(x)[1]
    return [
        ops.arange(length),
        ops.eye(length, length + 1, 1),
        ops.full((length, 2), 7, "int32"),
        ops.ones((length,)),
        ops.zeros((2, length)),
    ]


def test_a_tensor_is_created_by_a_free_size():
    check_operation(as_layer(of_sizes), X, free_axes=[1])


def test_an_empty_tensor_holds_zeros():
    check_operation(ops.empty_like, X, reference=np.zeros_like)


@pytest.mark.parametrize("indexing", ["xy", "ij"])
def test_a_grid_has_the_numbers_of_two_axes(indexing):
    check_operation(lambda x: ops.meshgrid(x[0, :, 0], x[0, :2, 1], indexing=indexing), X)


@pytest.mark.parametrize("case", LIKE)
def test_a_tensor_is_created_like_another(case):
    check_operation(LIKE[case], X, free_axes=[1])


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch has axis 0 alone")
def test_linspace_along_the_last_axis():
    check_operation(lambda x: ops.linspace(x, 2 * x, 5, axis=-1), X)


def test_linspace_of_integers_is_refused():
    with pytest.raises(NoEntryError, match="Linspace"):
        check_operation(lambda x: ops.linspace(x, x + 3, 5, dtype="int32"), X)

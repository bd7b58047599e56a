"""What keeps float64 where the dtype policy asks for it.

Keras's promotion of dtypes makes float32 of float64 on all backends but TensorFlow, and with it
some operations: those of two tensors, or of a tensor and a number, such as `ops.matmul` and
`ops.maximum`, and `ops.cumsum`.
"""

from typing import Any

import keras
from keras import ops

_WIDEST = "float64"


def promote_dtypes(*dtypes: str) -> str:
    """Returns the dtype that holds numbers of all of these.

    Args:
        *dtypes: Names of dtypes.
    """
    if _WIDEST in map(keras.backend.standardize_dtype, dtypes):
        return _WIDEST
    promoted: str = keras.backend.result_type(*dtypes)
    return promoted


def multiply_matrices(left: Any, right: Any) -> Any:
    """Returns `ops.matmul(left, right)`, in float64 where these are.

    Args:
        left: Tensor of shape `(..., rows, inner)`.
        right: Tensor or variable of shape `(..., inner, columns)`.
    """
    if _would_be_rounded(left):
        return left @ ops.convert_to_tensor(right)
    return ops.matmul(left, right)


def multiply_transposed(left: Any, right: Any) -> Any:
    """Returns the products of rows with rows, in float64 where these are.

    XLA takes the rows as they lie, where it would copy a matrix that `ops.transpose` turned.

    Args:
        left: Tensor of shape `(..., rows, inner)`.
        right: Tensor of shape `(..., columns, inner)`.
    """
    if _would_be_rounded(left):
        return left @ ops.swapaxes(right, -1, -2)
    return ops.einsum("...rd,...cd->...rc", left, right)


def accumulate(tensor: Any, axis: int) -> Any:
    """Returns `ops.cumsum(tensor, axis)`, in float64 where it is.

    Args:
        tensor: Tensor.
        axis: integer. The axis along which to add up.
    """
    if _would_be_rounded(tensor):
        return tensor.cumsum(axis)  # Of that name on PyTorch and JAX, which alone come here.
    return ops.cumsum(tensor, axis=axis)


def call_dense(dense: keras.layers.Dense, inputs: Any) -> Any:
    """Returns `dense(inputs)`, in float64 where these are.

    Args:
        dense: `keras.layers.Dense`, built.
        inputs: Tensor of shape `(..., dim)`.
    """
    if not _would_be_rounded(inputs) or dense.quantization_mode is not None:
        return dense(inputs)
    outputs = multiply_matrices(inputs, dense.kernel)
    if dense.bias is not None:
        outputs = outputs + ops.convert_to_tensor(dense.bias)
    return dense.activation(outputs)


def call_reversed(embedding: keras.layers.ReversibleEmbedding, inputs: Any) -> Any:
    """Returns `embedding(inputs, reverse=True)`, in float64 where these are.

    Args:
        embedding: `keras.layers.ReversibleEmbedding`, built.
        inputs: Tensor of shape `(..., dim)`.
    """
    needs_keras = embedding.logit_soft_cap is not None or embedding.quantization_mode is not None
    if needs_keras or not _would_be_rounded(inputs):
        return embedding(inputs, reverse=True)
    is_tied = embedding.tie_weights
    kernel = ops.transpose(embedding.embeddings) if is_tied else embedding.reverse_embeddings
    return multiply_matrices(inputs, kernel)


def _would_be_rounded(tensor: Any) -> bool:
    is_rounded: bool = keras.backend.result_type(_WIDEST) != _WIDEST
    return is_rounded and keras.backend.standardize_dtype(tensor.dtype) == _WIDEST

"""Operations whose result stays float64 if the dtype policy is float64.

On all backends except TensorFlow, Keras's dtype promotion turns float64 into float32. This affects
operations of two tensors, or of a tensor and a number, such as `ops.matmul` and `ops.maximum`, and
`ops.cumsum`.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek.layers.quantized_layers import call_quantized

_WIDEST = "float64"


def promote_dtypes(*dtypes: str) -> str:
    """Returns the name of the dtype to which the given dtypes promote; float64 stays float64."""
    if _WIDEST in map(keras.backend.standardize_dtype, dtypes):
        return _WIDEST
    promoted: str = keras.backend.result_type(*dtypes)
    return promoted


def multiply_matrices(left: Any, right: Any) -> Any:
    """Returns `ops.matmul(left, right)`, in float64 if they are float64."""
    if _would_be_rounded(left):
        return left @ ops.convert_to_tensor(right)
    return ops.matmul(left, right)


def multiply_transposed(left: Any, right: Any) -> Any:
    """Returns `left` times the transposed `right`, in float64 if they are float64.

    `left` is `(..., rows, inner)`, `right` `(..., columns, inner)`. XLA reads the rows directly,
    while it would copy a matrix transposed by `ops.transpose`.
    """
    if _would_be_rounded(left):
        return left @ ops.swapaxes(right, -1, -2)
    return ops.einsum("...rd,...cd->...rc", left, right)


def accumulate(tensor: Any, axis: int) -> Any:
    """Returns `ops.cumsum(tensor, axis)`, in float64 if the tensor is float64."""
    if _would_be_rounded(tensor):
        return tensor.cumsum(axis)  # Only PyTorch and JAX get here, and both have this method.
    return ops.cumsum(tensor, axis=axis)


def call_dense(dense: keras.layers.Dense, inputs: Any) -> Any:
    """Returns `dense(inputs)`, in float64 if the inputs are. The layer must be built."""
    if dense.quantization_mode is not None:
        return call_quantized(dense, inputs)
    if not _would_be_rounded(inputs):
        return dense(inputs)
    outputs = multiply_matrices(inputs, dense.kernel)
    if dense.bias is not None:
        outputs = outputs + ops.convert_to_tensor(dense.bias)
    return dense.activation(outputs)


def call_reversed(embedding: keras.layers.ReversibleEmbedding, inputs: Any) -> Any:
    """Returns `embedding(inputs, reverse=True)`, in float64 if the inputs are.

    The embedding must be built, and not quantized.
    """
    if embedding.logit_soft_cap is not None or not _would_be_rounded(inputs):
        return embedding(inputs, reverse=True)
    is_tied = embedding.tie_weights
    kernel = ops.transpose(embedding.embeddings) if is_tied else embedding.reverse_embeddings
    return multiply_matrices(inputs, kernel)


def _would_be_rounded(tensor: Any) -> bool:
    is_rounded: bool = keras.backend.result_type(_WIDEST) != _WIDEST
    return is_rounded and keras.backend.standardize_dtype(tensor.dtype) == _WIDEST

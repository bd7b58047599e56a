"""The dtypes of tensors, with their names in NumPy, TF Serving and Open Inference.

Byte strings are arrays of dtype `object` that hold `bytes`.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from keras_deepseek.errors import InvalidInputError


@dataclass(frozen=True)
class Dtype:
    """One dtype, with its names in each protocol.

    Args:
        name: NumPy's name, or `"bfloat16"`.
        tf_number: The number in TensorFlow's `DataType`.
        tf_values: The field of `TensorProto` that lists the values.
        open_inference_values: The field of `InferTensorContents` that lists the values. Empty if
            there is none, so that values come as raw bytes only.
    """

    name: str
    tf_number: int
    tf_name: str
    tf_values: str
    open_inference: str
    open_inference_values: str

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype."""
        if self.name == "bfloat16":
            import ml_dtypes

            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return np.dtype(self.name)

    @property
    def is_bytes(self) -> bool:
        """True for byte strings."""
        return self.name == "object"

    @property
    def is_float_of_two_bytes(self) -> bool:
        """True for 16-bit floats, which `TensorProto` lists as the integers of their bits."""
        return self.name in ("float16", "bfloat16")


DTYPES = (
    Dtype("float32", 1, "DT_FLOAT", "float_val", "FP32", "fp32_contents"),
    Dtype("float64", 2, "DT_DOUBLE", "double_val", "FP64", "fp64_contents"),
    Dtype("int32", 3, "DT_INT32", "int_val", "INT32", "int_contents"),
    Dtype("uint8", 4, "DT_UINT8", "int_val", "UINT8", "uint_contents"),
    Dtype("int16", 5, "DT_INT16", "int_val", "INT16", "int_contents"),
    Dtype("int8", 6, "DT_INT8", "int_val", "INT8", "int_contents"),
    Dtype("object", 7, "DT_STRING", "string_val", "BYTES", "bytes_contents"),
    Dtype("int64", 9, "DT_INT64", "int64_val", "INT64", "int64_contents"),
    Dtype("bool", 10, "DT_BOOL", "bool_val", "BOOL", "bool_contents"),
    Dtype("bfloat16", 14, "DT_BFLOAT16", "half_val", "BF16", ""),
    Dtype("uint16", 17, "DT_UINT16", "int_val", "UINT16", "uint_contents"),
    Dtype("float16", 19, "DT_HALF", "half_val", "FP16", ""),
    Dtype("uint32", 22, "DT_UINT32", "uint32_val", "UINT32", "uint_contents"),
    Dtype("uint64", 23, "DT_UINT64", "uint64_val", "UINT64", "uint64_contents"),
)
"""All dtypes that a request or a response can have."""

_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_BY_TF_NUMBER = {dtype.tf_number: dtype for dtype in DTYPES}
_BY_OPEN_INFERENCE = {dtype.open_inference: dtype for dtype in DTYPES}


def dtype_of(name: str) -> Dtype:
    """Returns the `Dtype` with a NumPy name. Strings of any kind are `object`."""
    if name.startswith(("<U", "|S", "str", "bytes")):
        name = "object"
    if name not in _BY_NAME:
        raise InvalidInputError(f"dtype {name} can't be sent; expected one of {sorted(_BY_NAME)}.")
    return _BY_NAME[name]


@lru_cache(maxsize=256)
def dtype_of_numpy(dtype: np.dtype[Any]) -> Dtype:
    """Returns the `Dtype` of a NumPy dtype. Cached, because NumPy is slow to make the name."""
    return dtype_of(str(dtype))


def dtype_of_tf_number(number: int, where: str) -> Dtype:
    """Returns the `Dtype` with a number of TensorFlow's `DataType`.

    Complex and quantized dtypes raise an error, which starts with `where`.
    """
    if number not in _BY_TF_NUMBER:
        names = ", ".join(dtype.tf_name for dtype in DTYPES)
        raise InvalidInputError(f"{where}: received DataType {number}; expected one of {names}.")
    return _BY_TF_NUMBER[number]


def dtype_of_open_inference(datatype: object, where: str) -> Dtype:
    """Returns the `Dtype` of an Open Inference datatype name."""
    if not isinstance(datatype, str) or datatype not in _BY_OPEN_INFERENCE:
        names = ", ".join(sorted(_BY_OPEN_INFERENCE))
        raise InvalidInputError(
            f"{where}: received datatype {datatype!r:.100}; expected one of {names}."
        )
    return _BY_OPEN_INFERENCE[datatype]

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import tensor_bytes


def test_each_dtype_has_one_word_in_each_protocol():
    for words in ("name", "tf_number", "tf_name", "open_inference"):
        assert len({getattr(dtype, words) for dtype in tensor_bytes.DTYPES}) == len(
            tensor_bytes.DTYPES
        )


@pytest.mark.parametrize("dtype", tensor_bytes.DTYPES, ids=lambda dtype: dtype.name)
def test_each_is_found_by_each_word(dtype):
    assert tensor_bytes.dtype_of(str(dtype.numpy)) is dtype
    assert tensor_bytes.dtype_of_tf_number(dtype.tf_number, "x") is dtype
    assert tensor_bytes.dtype_of_open_inference(dtype.open_inference, "x") is dtype


@pytest.mark.parametrize("array", [np.array(["ab"]), np.array([b"ab"]), np.array([b"a"], object)])
def test_strings_of_any_kind_are_bytes(array):
    assert tensor_bytes.dtype_of(str(array.dtype)).is_bytes


def test_what_no_protocol_has_is_refused_with_what_was_received():
    with pytest.raises(InvalidInputError, match="complex64"):
        tensor_bytes.dtype_of("complex64")
    with pytest.raises(InvalidInputError, match="Input 'x': received DataType 8"):
        tensor_bytes.dtype_of_tf_number(8, "Input 'x'")
    for name in ("FP8", "", None, ["FP32"]):
        with pytest.raises(InvalidInputError, match="Input 'x': received datatype"):
            tensor_bytes.dtype_of_open_inference(name, "Input 'x'")


def test_numpy_s_dtypes_are_known_by_themselves():
    assert tensor_bytes.dtype_of_numpy(np.dtype("float32")) is tensor_bytes.dtype_of("float32")
    assert tensor_bytes.dtype_of_numpy(np.dtype("<U3")) is tensor_bytes.dtype_of("object")
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="complex64 can't be sent"):
            tensor_bytes.dtype_of_numpy(np.dtype("complex64"))
        with pytest.raises(InvalidInputError, match=">f4 can't be sent"):
            tensor_bytes.dtype_of_numpy(np.dtype(">f4"))

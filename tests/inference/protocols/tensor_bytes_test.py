import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import tensor_bytes
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES, dtype_of
from tests.oracles.protocols import NUMBERS, arrays, same

FLOAT, BOOL, BYTES = dtype_of("float32"), dtype_of("bool"), dtype_of("object")


@given(arrays([*NUMBERS, "object"]))
def test_from_bytes_reads_what_to_bytes_wrote(array):
    dtype = dtype_of(str(array.dtype))
    data = tensor_bytes.to_bytes(array)
    assert same(tensor_bytes.from_bytes(data, dtype, array.shape, "x"), array)


def test_numbers_are_a_view_of_the_bytes():
    data = np.arange(6, dtype="float32").tobytes()
    array = tensor_bytes.from_bytes(data, FLOAT, (2, 3), "x")
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_bytes_that_begin_anywhere_are_aligned():
    data = b"." + np.arange(6, dtype="float32").tobytes()
    array = tensor_bytes.from_bytes(memoryview(data)[1:], FLOAT, (6,), "x")
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("bytes_there", [0, 4, 20, 23, 25, 28])
def test_too_few_and_too_many_bytes_are_refused(bytes_there):
    with pytest.raises(InvalidInputError, match=rf"x: received {bytes_there} bytes;.*has 24"):
        tensor_bytes.from_bytes(bytes(bytes_there), FLOAT, (2, 3), "x")


@pytest.mark.parametrize(
    "shape", [(2**62, 2), (2**40, 2**40), (2**63,), (2**200,), (1,) * 200, (0, *([1] * 100))]
)
@pytest.mark.parametrize("dtype", [FLOAT, BYTES])
def test_shapes_beyond_all_memory_are_refused_before_it_is_asked_for(shape, dtype):
    with pytest.raises(InvalidInputError, match="x: "):
        tensor_bytes.from_bytes(bytes(4), dtype, shape, "x")


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (2**62, 0), (0, 2**70)])
def test_a_shape_of_no_values_may_be_refused_but_fills_no_memory(shape):
    try:
        array = tensor_bytes.from_bytes(b"", FLOAT, shape, "x")
    except InvalidInputError:
        return
    assert array.nbytes == 0


@pytest.mark.parametrize("sizes", [[-1], [2, -3], [1.0], ["2"], [None], [True], [[1]]])
def test_a_shape_of_anything_else_is_refused(sizes):
    with pytest.raises(InvalidInputError, match="expected integers of at least 0"):
        tensor_bytes.check_shape(sizes, "x")


def test_a_bool_is_0_or_1():
    assert tensor_bytes.from_bytes(b"\x00\x01", BOOL, (2,), "x").tolist() == [False, True]
    with pytest.raises(InvalidInputError, match="neither 0 nor 1"):
        tensor_bytes.from_bytes(b"\x00\x02", BOOL, (2,), "x")


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (b"", (1,)),
        (b"\x01\x00\x00", (1,)),
        (b"\x01\x00\x00\x00", (1,)),
        (b"\xff\xff\xff\xff", (1,)),
        (b"\x00\x00\x00\x00.", (1,)),
        (b"\x00\x00\x00\x00", (0,)),
        (b"\x01\x00\x00\x00a\x00\x00\x00", (2,)),
    ],
)
def test_strings_that_do_not_fill_their_bytes_are_refused(data, shape):
    with pytest.raises(InvalidInputError, match="x: "):
        tensor_bytes.from_bytes(data, BYTES, shape, "x")


def test_text_is_written_as_utf_8_and_anything_else_is_refused():
    assert tensor_bytes.to_bytes(np.array(["ü"])) == b"\x02\x00\x00\x00\xc3\xbc"
    assert tensor_bytes.strings_of(np.array([["a", b"b"]], object)) == [b"a", b"b"]
    with pytest.raises(InvalidInputError, match="received float"):
        tensor_bytes.to_bytes(np.array([1.5], object))


@given(
    st.binary(max_size=80),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 6), max_size=3).map(tuple),
)
def test_random_bytes_are_a_tensor_or_a_bad_input(data, dtype, shape):
    try:
        array = tensor_bytes.from_bytes(data, dtype, shape, "x")
    except InvalidInputError:
        return
    assert tensor_bytes.to_bytes(array) == data


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


def test_a_dtype_that_no_protocol_has_is_refused():
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

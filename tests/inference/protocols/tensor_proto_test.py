import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import tensor_proto
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES, dtype_of
from tests.oracles.protocols import NUMBERS, arrays, import_client, same

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

TENSOR = "tensorflow.TensorProto"


def make(dtype, shape, **fields):
    """Returns a message of these fields."""
    number = next((row.tf_number for row in DTYPES if row.tf_name == dtype), dtype)
    message = new_message(TENSOR, dtype=number, **fields)
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


def read(message):
    return tensor_proto.from_tensor_proto(message, "Input 'x'")


@given(arrays([*NUMBERS, "object"]))
def test_what_is_written_is_read(array):
    data = tensor_proto.to_tensor_proto(array).SerializeToString()
    assert same(read(parse_message(TENSOR, data)), array)


@given(arrays([*NUMBERS, "object"]))
def test_values_in_the_field_of_their_kind_are_read(array):
    dtype = dtype_of(str(array.dtype))
    values = array.view(np.uint16) if dtype.is_float_of_two_bytes else array
    message = make(dtype.tf_name, array.shape)
    with np.errstate(all="ignore"):
        getattr(message, dtype.tf_values).extend(values.ravel().tolist())
    if dtype.name == "float32":  # A NaN may get other bits on its way through a float of Python.
        np.testing.assert_array_equal(read(message), array)
    else:
        assert same(read(message), array)


@pytest.mark.parametrize(
    ("dtype", "field", "values", "expected"),
    [
        ("DT_FLOAT", "float_val", [1.5], [1.5, 1.5, 1.5]),
        ("DT_INT8", "int_val", [1, -2], [1, -2, -2]),
        ("DT_HALF", "half_val", [0x3C00], [1, 1, 1]),
        ("DT_BFLOAT16", "half_val", [0x3F80], [1, 1, 1]),
        ("DT_STRING", "string_val", [b"a", b"b"], [b"a", b"b", b"b"]),
        ("DT_BOOL", "bool_val", [True], [True, True, True]),
        ("DT_INT64", "int64_val", [], [0, 0, 0]),
        ("DT_STRING", "string_val", [], [b"", b"", b""]),
    ],
)
def test_a_list_that_is_too_short_goes_on_with_its_last_value(dtype, field, values, expected):
    assert read(make(dtype, [3], **{field: values})).tolist() == expected


@pytest.mark.parametrize("shape", [[2**40], [2**62, 2**62], [2**24, 2**3]])
@pytest.mark.parametrize("values", [[], [1.0]])
def test_a_few_bytes_do_not_fill_the_memory(shape, values):
    with pytest.raises(InvalidInputError, match="At most 67108864 bytes are filled"):
        read(make("DT_FLOAT", shape, float_val=values))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (make("DT_FLOAT", [2], float_val=[1, 2, 3]), "received 3 values; its shape has 2"),
        (make("DT_FLOAT", [2], tensor_content=bytes(7)), "received 7 bytes"),
        (make("DT_FLOAT", [2**63 - 1, 2**62], tensor_content=bytes(8)), "received 8 bytes"),
        (make("DT_FLOAT", [-1], tensor_content=bytes(8)), "expected integers of at least 0"),
        (make("DT_INT8", [1], int_val=[128]), "range of int8"),
        (make("DT_UINT8", [1], int_val=[-1]), "range of uint8"),
        (make("DT_HALF", [1], half_val=[2**16]), "range of uint16"),
        (make("DT_STRING", [1], tensor_content=b"\x01a"), "use string_val"),
        (make(8, [1], scomplex_val=[1, 2]), "DataType 8"),
        (make(11, [1], int_val=[1]), "DataType 11"),
        (make(20, []), "DataType 20"),
        (make(0, []), "DataType 0"),
        (make(99, []), "DataType 99"),
        (make("DT_FLOAT", [1] * 70, float_val=[1]), "too large"),
    ],
)
def test_what_does_not_hold_together_is_refused(message, error):
    with pytest.raises(InvalidInputError, match=f"Input 'x': .*{error}"):
        read(message)


def test_a_tensor_without_a_shape_is_refused():
    message = make("DT_FLOAT", [], float_val=[1])
    assert read(message).shape == ()
    message.tensor_shape.unknown_rank = True
    with pytest.raises(InvalidInputError, match="without a shape"):
        read(message)


def test_raw_bytes_are_not_copied_by_us():
    content = np.arange(4, dtype="float32").tobytes()

    class Message:
        dtype, tensor_content = 1, content
        tensor_shape = make("DT_FLOAT", [4]).tensor_shape

    array = read(Message)
    assert np.shares_memory(array, np.frombuffer(content, np.uint8))


@given(st.binary(max_size=60))
def test_random_bytes_are_a_tensor_or_a_bad_input(data):
    with contextlib.suppress(InvalidInputError):
        tensor_proto.from_tensor_proto(parse_message(TENSOR, data), "x", 2**10)


@given(arrays([*NUMBERS, "object"]), st.data())
def test_a_message_that_is_cut_short_is_a_tensor_or_a_bad_input(array, data):
    whole = tensor_proto.to_tensor_proto(array).SerializeToString()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    with contextlib.suppress(InvalidInputError):
        tensor_proto.from_tensor_proto(parse_message(TENSOR, cut), "x", 2**10)


@settings(max_examples=40)
@given(arrays([*NUMBERS, "object"]))
def test_tensorflow_reads_what_is_written_and_writes_what_is_read(array):
    tf = import_client("tensorflow")
    protos = import_client("tensorflow.core.framework.tensor_pb2")
    ours = tensor_proto.to_tensor_proto(array).SerializeToString()
    assert same(tf.make_ndarray(protos.TensorProto.FromString(ours)), array)
    # TensorFlow writes small tensors as lists, and cuts off values that repeat.
    theirs = tf.make_tensor_proto(array, shape=array.shape).SerializeToString()
    assert same(read(parse_message(TENSOR, theirs)), array)


@pytest.mark.parametrize("name", [*NUMBERS, "object"])
def test_tensorflow_itself_fills_up_as_is_done_here(name):
    tf = import_client("tensorflow")
    protos = import_client("tensorflow.core.framework.tensor_pb2")
    dtype = dtype_of(name)
    for values in ([], [b"a"] if dtype.is_bytes else [1]):
        message = make(dtype.tf_name, [2, 2], **{dtype.tf_values: values})
        theirs = tf.io.parse_tensor(
            message.SerializeToString(), tf.dtypes.as_dtype(dtype.tf_number)
        )
        assert protos.TensorProto.FromString(message.SerializeToString()).dtype == dtype.tf_number
        assert same(read(message), theirs.numpy())

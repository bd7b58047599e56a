import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import open_inference
from keras_deepseek.inference.protocols.open_inference import InferCall, RequestedOutput
from keras_deepseek.inference.protocols.tensor_bytes import dtype_of, to_bytes
from tests.oracles.protocols import NUMBERS, arrays, import_client, same, skip_without

FLOATS = np.arange(6, dtype="float32").reshape(2, 3)


def tensor(**changes):
    """Returns an input of six floats, with changes; `None` takes a key away."""
    whole = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def parse(*tensors, **content):
    return open_inference.parse_infer(json.dumps({"inputs": list(tensors), **content}).encode())


def binary(size, **changes):
    return tensor(data=None, parameters={"binary_data_size": size}, **changes)


def parse_binary(data, *tensors, header=None):
    text = json.dumps({"inputs": list(tensors)}).encode()
    return open_inference.parse_infer(text + data, str(len(text)) if header is None else header)


@pytest.mark.parametrize(
    "data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]], [[[1], [2]], [[3], [4]], [[5], [6]]]]
)
def test_values_stand_flat_or_nested(data):
    assert parse(tensor(data=data)).inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("datatype", "data", "dtype"),
    [
        ("BOOL", [True, False], "bool"),
        ("UINT8", [0, 255], "uint8"),
        ("INT64", [-(2**63), 2**63 - 1], "int64"),
        ("UINT64", [0, 2**64 - 1], "uint64"),
        ("FP16", [0.5, 1], "float16"),
        ("FP64", [0.1, float("inf")], "float64"),
        ("BF16", [0.5, 1], "bfloat16"),
        ("BYTES", ["a", "ü"], "object"),
    ],
)
def test_every_datatype_may_stand_in_json(datatype, data, dtype):
    array = parse(tensor(shape=[2], datatype=datatype, data=data)).inputs["x"]
    assert array.dtype == dtype_of(dtype).numpy
    expected = [b"a", b"\xc3\xbc"] if datatype == "BYTES" else data
    assert array.tolist() == expected


def test_what_a_request_says_beside_its_inputs_is_read():
    call = parse(
        tensor(),
        id="7",
        parameters={"binary_data_output": True, "priority": 3},
        outputs=[{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
        more=1,
    )
    assert (call.id, call.parameters["priority"], call.is_binary) == ("7", 3, True)
    assert call.outputs == (RequestedOutput("a", True), RequestedOutput("b", False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "an object with a 'name'"),
        ({"name": 3}, "an object with a 'name'"),
        ({"datatype": None}, "received datatype None"),
        ({"datatype": "FP8"}, "received datatype 'FP8'"),
        ({"shape": None}, "expected 'shape'"),
        ({"shape": [-1, 3]}, "integers of at least 0"),
        ({"shape": [2.0, 3]}, "integers of at least 0"),
        ({"shape": [2, 2]}, "received 6 values; shape .2, 2. has 4"),
        ({"shape": [2**62, 2**62]}, "received 6 values"),
        ({"shape": [1] * 100 + [6]}, "too large"),
        ({"data": None}, "either 'data' or"),
        ({"parameters": {"binary_data_size": 24}}, "either 'data' or"),
        ({"parameters": {"binary_data_size": None}, "data": 5}, "received 1 values"),
        ({"parameters": []}, "'parameters' must be an object"),
        ({"parameters": {"shared_memory_region": "r"}}, "'shared_memory_region' is not supported"),
        ({"data": [1, 2, 3, 4, 5, "6"]}, "received text"),
        ({"data": [1, 2, 3, 4, 5, None]}, "received a null"),
        ({"data": [[1, 2, 3], [4, 5]]}, "unequal length"),
        ({"data": {}}, "received an object"),
        ({"data": [1, 2, 3, 4, 5, 1e39]}, "can't all be float32"),
        ({"data": [1, 2, 3, 4, 5, 6.5], "datatype": "INT32"}, "can't all be int32"),
        ({"data": [1, 2, 3, 4, 5, 256], "datatype": "UINT8"}, "can't all be uint8"),
        ({"datatype": "BYTES"}, "expected strings; received 1"),
        ({"datatype": "BYTES", "data": [["a"], "b"]}, "received 2 values"),
    ],
)
def test_a_tensor_that_does_not_hold_together_is_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        parse(tensor(**changes))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "list of 'inputs'"),
        (b"{}", "list of 'inputs'"),
        (b'{"inputs": {}}', "list of 'inputs'"),
        (b'{"inputs": [3]}', "an object with a 'name'"),
        (b'{"inputs": [], "outputs": {"a": 1}}', "'outputs' must be a list"),
        (b'{"inputs": [], "outputs": {}}', "'outputs' must be a list"),
        (b'{"inputs": [], "outputs": ["a"]}', "an object with a 'name'"),
        (b'{"inputs": [], "id": 3}', "'id' must be a string"),
        (b'{"inputs": [], "parameters": 3}', "'parameters' must be an object"),
        (b'{"inputs": [], "parameters": {"binary_data_output": 1}}', "must be true or false"),
        (
            b'{"inputs": [], "outputs": [{"name": "a", "parameters": {"classification": 0}}]}',
            "received classification=0",
        ),
    ],
)
def test_a_bad_body_is_refused_with_what_is_wrong(body, message):
    with pytest.raises(InvalidInputError, match=message):
        open_inference.parse_infer(body)


def test_an_input_is_sent_once():
    with pytest.raises(InvalidInputError, match="'x' was sent twice"):
        parse(tensor(), tensor())


def test_raw_bytes_follow_json_in_the_order_of_the_inputs():
    more = np.array([True, False, True])
    call = parse_binary(
        FLOATS.tobytes() + more.tobytes(),
        binary(24),
        tensor(name="y"),
        binary(3, name="z", shape=[3], datatype="BOOL"),
    )
    assert same(call.inputs["x"], FLOATS)
    assert call.inputs["y"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert same(call.inputs["z"], more)


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (bytes(24), 23, "received 23 bytes"),
        (bytes(24), 28, "the 24 that are left"),
        (bytes(23), 24, "the 23 that are left"),
        (bytes(24), -24, "the 24 that are left"),
        (bytes(24), 2**70, "the 24 that are left"),
        (bytes(24), "24", "the 24 that are left"),
        (bytes(24), True, "the 24 that are left"),
        (bytes(24), 24.0, "the 24 that are left"),
        (bytes(25), 24, "25 bytes after the JSON. Expected 24, the sum"),
    ],
)
def test_a_size_is_compared_with_the_bytes_that_are_there(data, size, message):
    with pytest.raises(InvalidInputError, match=message):
        parse_binary(data, binary(size))


@pytest.mark.parametrize("header", ["", "-1", "1.0", "abc", "²", "9" * 5000, "1000000", " 5"])
def test_a_header_that_is_no_length_of_the_body_is_refused(header):
    with pytest.raises(InvalidInputError, match="Expected a number of bytes from 0 to"):
        parse_binary(bytes(24), binary(24), header=header)


@pytest.mark.parametrize("header", ["0", "5"])
def test_a_header_that_cuts_json_short_is_refused(header):
    with pytest.raises(InvalidInputError, match="not JSON"):
        parse_binary(bytes(24), binary(24), header=header)


@given(arrays([*NUMBERS, "object"]), st.booleans())
def test_what_is_written_as_bytes_is_read(array, with_another):
    call = InferCall({}, (RequestedOutput("x", True), RequestedOutput("y", False)), id="7")
    outputs = {"y": np.float32([1, 2]), "x": array}
    body, length = open_inference.encode_infer(call, outputs, "m", "2")
    content = json.loads(body[:length])
    assert (content["model_name"], content["model_version"], content["id"]) == ("m", "2", "7")
    assert [output["name"] for output in content["outputs"]] == ["x", "y"]
    # An answer's tensors have the form of a request's.
    again = json.dumps({"inputs": content["outputs"]}).encode()
    read = open_inference.parse_infer(again + body[length:], str(len(again)))
    assert same(read.inputs["x"], array)


@given(arrays(NUMBERS))
def test_what_is_written_as_json_is_read(array):
    body, length = open_inference.encode_infer(InferCall({}), {"x": array}, "m", "1")
    assert length is None
    (written,) = json.loads(body)["outputs"]
    read = parse(written).inputs["x"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=4))
def test_text_is_written_as_json_and_read(values):
    array = np.array([value.encode() for value in values], object)
    body, _ = open_inference.encode_infer(InferCall({}), {"x": array}, "m", "1")
    assert same(parse(json.loads(body)["outputs"][0]).inputs["x"], array)


def test_bytes_that_are_no_text_are_refused_in_json_with_what_to_do():
    with pytest.raises(InvalidInputError, match="'binary_data'"):
        open_inference.encode_infer(InferCall({}), {"x": np.array([b"\xff"], object)}, "m", "1")


def test_all_outputs_are_answered_as_bytes_where_the_request_says_so():
    outputs = {"a": FLOATS, "b": FLOATS}
    body, length = open_inference.encode_infer(InferCall({}, is_binary=True), outputs, "m", "1")
    assert body[length:] == FLOATS.tobytes() * 2


def test_an_output_that_there_is_not_is_refused():
    with pytest.raises(InvalidInputError, match="Unknown output 'bb': did you mean 'b'"):
        open_inference.encode_infer(
            InferCall({}, (RequestedOutput("bb"),)), {"b": FLOATS}, "m", "1"
        )


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | json_values,
            "shape": st.lists(st.integers(0, 3), max_size=3) | json_values,
            "datatype": st.sampled_from(["FP32", "INT8", "BYTES", "BOOL", "BF16"]) | json_values,
            "data": json_values,
            "parameters": st.fixed_dictionaries({"binary_data_size": json_values}) | json_values,
        },
    ),
    st.binary(max_size=20),
)
def test_whatever_json_holds_is_read_or_refused_as_a_bad_input(value, data):
    with contextlib.suppress(InvalidInputError):
        parse_binary(data, value)


@given(st.binary(max_size=60), st.none() | st.text("0123456789-x ", max_size=3))
def test_random_bytes_are_a_request_or_a_bad_input(body, header):
    with contextlib.suppress(InvalidInputError):
        open_inference.parse_infer(body, header)


@given(arrays([*NUMBERS, "object"]), st.data())
def test_a_request_that_is_cut_short_is_refused(array, data):
    raw = to_bytes(array)
    described = binary(
        len(raw),
        shape=list(array.shape),
        datatype=dtype_of(str(array.dtype)).open_inference,
    )
    text = json.dumps({"inputs": [described]}).encode()
    whole = text + raw
    assert same(open_inference.parse_infer(whole, str(len(text))).inputs["x"], array)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(InvalidInputError):
        open_inference.parse_infer(cut, str(len(text)))


def test_tritonclient_asks_for_classes_and_understands_them():
    client = import_client("tritonclient.http")
    given_input = client.InferInput("x", [2, 3], "FP32")
    given_input.set_data_from_numpy(FLOATS)
    for is_binary in (True, False):
        outputs = [client.InferRequestedOutput("y", binary_data=is_binary, class_count=2)]
        make = client.InferenceServerClient.generate_request_body
        body, size = make([given_input], outputs=outputs)
        call = open_inference.parse_infer(bytes(body), str(size))
        assert call.outputs == (RequestedOutput("y", is_binary, 2),)
        answer, length = open_inference.encode_infer(call, {"y": FLOATS}, "m", "1")
        understood = client.InferenceServerClient.parse_response_body(answer, header_length=length)
        received = [
            [str(label, "ascii") if is_binary else label for label in row]
            for row in understood.as_numpy("y").tolist()
        ]
        assert received == [["2.000000:2", "1.000000:1"], ["5.000000:2", "4.000000:1"]]


TRITON = [name for name in [*NUMBERS, "object"] if name != "bfloat16"]


@pytest.mark.parametrize("is_binary", [True, False])
@given(array=arrays(TRITON))
def test_tritonclient_s_requests_are_read_and_answers_understood(is_binary, array):
    client = import_client("tritonclient.http")
    datatype = dtype_of(str(array.dtype)).open_inference
    if not is_binary and datatype in ("FP16", "BYTES"):
        return  # It does not send the one as JSON, and the other only if it is text.
    given_input = client.InferInput("x", list(array.shape), datatype)
    with np.errstate(all="ignore"):
        given_input.set_data_from_numpy(array, binary_data=is_binary)
    outputs = [client.InferRequestedOutput("y", binary_data=is_binary)]
    make = client.InferenceServerClient.generate_request_body
    body, size = make([given_input], outputs=outputs, request_id="7")
    call = open_inference.parse_infer(bytes(body), None if size is None else str(size))
    assert call.inputs["x"].dtype == array.dtype
    np.testing.assert_array_equal(call.inputs["x"], array)
    answer, length = open_inference.encode_infer(call, {"y": array}, "m", "1")
    understood = client.InferenceServerClient.parse_response_body(answer, header_length=length)
    assert understood.get_response()["id"] == "7"
    received = understood.as_numpy("y")
    np.testing.assert_array_equal(received.astype(array.dtype), array)


def test_tritonclient_s_bfloat16_is_read():
    client = import_client("tritonclient.http")
    array = np.array([[0.5, 1.0, -2.0]], dtype_of("bfloat16").numpy)
    given_input = client.InferInput("x", [1, 3], "BF16")
    given_input.set_data_from_numpy(array)
    body, size = client.InferenceServerClient.generate_request_body([given_input])
    call = open_inference.parse_infer(bytes(body), str(size))
    assert same(call.inputs["x"], array)
    answer, length = open_inference.encode_infer(call, {"y": call.inputs["x"]}, "m", "1")
    understood = client.InferenceServerClient.parse_response_body(answer, header_length=length)
    assert understood.as_numpy("y").astype("float32").tolist() == array.tolist()


def test_kserve_s_requests_are_read_and_answers_understood():
    skip_without("kserve")
    # In a process of its own: its messages and tritonclient's have the same names.
    code = """
import json
import numpy as np
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.infer_type import RequestedOutput
from keras_deepseek.inference.protocols.open_inference import encode_infer, parse_infer
x = np.array([[1.5, 2.5], [3.5, 4.5]], "float32")
for is_binary in (True, False):
    given = InferInput("x", [2, 2], "FP32")
    given.set_data_from_numpy(x, binary_data=is_binary)
    wanted = [RequestedOutput("y", parameters={"binary_data": is_binary})]
    request = InferRequest("m", [given], request_id="7", request_outputs=wanted)
    body, size = request.to_rest()
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    call = parse_infer(body, None if size is None else str(size))
    assert call.inputs["x"].tolist() == x.tolist() and call.id == "7", call
    answer, length = encode_infer(call, {"y": 2 * call.inputs["x"]}, "m", "1")
    assert (length is not None) == is_binary
    understood = InferResponse.from_bytes(answer, length if length else len(answer))
    assert understood.outputs[0].as_numpy().tolist() == (2 * x).tolist()
print("understood")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "understood\n", done.stderr

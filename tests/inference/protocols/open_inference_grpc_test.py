import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols import open_inference_grpc
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.open_inference import InferCall, RequestedOutput
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES, dtype_of, to_bytes
from tests.oracles.protocols import NUMBERS, arrays, import_client, same

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

SIGNATURE = Signature(
    (TensorSpec("x", (None, 2), "float32"),), (TensorSpec("y", (None, 2), "float32"),)
)
LISTED = [dtype.name for dtype in DTYPES if dtype.open_inference_values]


def new(name, **fields):
    return new_message(f"inference.{name}", **fields)


def request_for(**tensors):
    """Returns a request with each array as raw bytes."""
    request = new("ModelInferRequest")
    for name, array in tensors.items():
        datatype = dtype_of(str(array.dtype)).open_inference
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_bytes(array))
    return request


def listed(datatype, shape, **contents):
    request = new("ModelInferRequest")
    request.inputs.add(name="x", datatype=datatype, shape=shape, contents=contents)
    return request


def parse(request):
    return open_inference_grpc.parse_infer(request.SerializeToString())


def read(request):
    """Returns the arrays of a request by input name."""
    return read_inputs(parse(request))


def read_inputs(call):
    return {name: open_inference_grpc.read_tensor(tensor) for name, tensor in call.inputs.items()}


def read_answer(data):
    """Returns the outputs of an answer, read as a request's inputs are."""
    answer = parse_message("inference.ModelInferResponse", data)
    request = new("ModelInferRequest", raw_input_contents=answer.raw_output_contents)
    for output in answer.outputs:
        request.inputs.add().MergeFromString(output.SerializeToString())
    return read(request)


@given(arrays([*NUMBERS, "object"]), arrays([*NUMBERS, "object"]))
def test_raw_bytes_are_read_and_answered(x, y):
    call = parse(request_for(x=x, y=y))
    inputs = read_inputs(call)
    assert same(inputs["x"], x)
    assert same(inputs["y"], y)
    assert call.is_binary
    answer = read_answer(open_inference_grpc.format_infer(call, {"x": x, "y": y}, "m", "1"))
    assert same(answer["x"], x)
    assert same(answer["y"], y)


@given(arrays(LISTED))
def test_values_that_are_listed_are_answered_as_a_list(array):
    data = open_inference_grpc.format_infer(InferCall({}), {"x": array}, "m", "1")
    answer = parse_message("inference.ModelInferResponse", data)
    assert not answer.raw_output_contents
    read = read_answer(data)["x"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_floats_of_two_bytes_are_raw_in_every_answer():
    outputs = {"x": np.float16([1, 2]), "y": np.float32([3])}
    data = open_inference_grpc.format_infer(InferCall({}), outputs, "m", "1")
    assert len(parse_message("inference.ModelInferResponse", data).raw_output_contents) == 2


def test_what_a_request_says_beside_its_inputs_is_read():
    request = request_for(x=np.zeros(1, "float32"))
    request.model_name, request.model_version, request.id = "m", "2", "7"
    request.parameters["priority"].int64_param = 3
    request.parameters["share"].double_param = 0.5
    request.parameters["nothing"].SetInParent()
    request.outputs.add(name="y")
    call = parse(request)
    assert (call.model_name, call.model_version, call.id) == ("m", "2", "7")
    assert call.parameters == {"priority": 3, "share": 0.5, "nothing": None}
    assert call.outputs == (RequestedOutput("y", True),)
    answer = parse_message(
        "inference.ModelInferResponse",
        open_inference_grpc.format_infer(call, {"x": np.zeros(1), "y": np.ones(1)}, "m", "3"),
    )
    assert (answer.id, answer.model_name, answer.model_version) == ("7", "m", "3")
    assert [output.name for output in answer.outputs] == ["y"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (listed("FP32", [2], fp32_contents=[1]), "received 1 values"),
        (listed("FP32", [2]), "received 0 values"),
        (listed("FP32", [-2], fp32_contents=[1]), "integers of at least 0"),
        (listed("FP32", [2**62, 4], fp32_contents=[1]), "received 1 values"),
        (listed("FP32", [1], fp64_contents=[1]), "FP32 comes in fp32_contents"),
        (listed("FP16", [1], fp32_contents=[1]), "FP16 comes in raw_input_contents"),
        (listed("FP16", [1]), "received 0 values"),
        (listed("INT8", [1], int_contents=[128]), "range of int8"),
        (listed("UINT16", [1], uint_contents=[2**16]), "range of uint16"),
        (listed("FLOAT", [1], fp32_contents=[1]), "received datatype 'FLOAT'"),
        (listed("", [1]), "received datatype ''"),
    ],
)
def test_a_tensor_that_does_not_hold_together_is_refused(request_, message):
    with pytest.raises(InvalidInputError, match=message):
        read(request_)


def test_raw_bytes_are_for_every_input_or_for_none():
    request = request_for(x=np.zeros(1, "float32"), y=np.zeros(1, "float32"))
    request.raw_input_contents.pop()
    with pytest.raises(InvalidInputError, match="1 raw_input_contents for 2 inputs"):
        read(request)
    request = request_for(x=np.zeros(1, "float32"))
    request.inputs[0].contents.fp32_contents.append(1)
    with pytest.raises(InvalidInputError, match="'contents' beside raw_input_contents"):
        read(request)


def test_an_input_is_sent_once_and_shared_memory_is_refused():
    request = request_for(x=np.zeros(1, "float32"))
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidInputError, match="'shared_memory_region' is not supported"):
        read(request)
    request = listed("FP32", [1], fp32_contents=[1])
    request.inputs.add().CopyFrom(request.inputs[0])
    with pytest.raises(InvalidInputError, match="'x' was sent twice"):
        read(request)


def test_classes_are_answered_in_place_of_an_output():
    request = request_for(x=np.zeros(1, "float32"))
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    call = parse(request)
    data = open_inference_grpc.format_infer(call, {"y": np.float32([[1, 3], [4, 2]])}, "m", "1")
    assert read_answer(data)["y"].tolist() == [[b"3.000000:1"], [b"4.000000:0"]]
    request.outputs[0].parameters["classification"].string_param = "1"
    with pytest.raises(InvalidInputError, match="Output 'y': received classification='1'"):
        read(request)


def test_an_answer_of_a_stream_has_the_answer_or_an_error():
    call = InferCall({}, id="7")
    outputs = {"y": np.float32([1])}
    data = open_inference_grpc.format_infer(call, outputs, "m", "1", in_stream=True)
    answer = parse_message("inference.ModelStreamInferResponse", data)
    assert (answer.error_message, answer.infer_response.id) == ("", "7")
    data = open_inference_grpc.format_stream_error("no such input", call)
    answer = parse_message("inference.ModelStreamInferResponse", data)
    assert (answer.error_message, answer.infer_response.id) == ("no such input", "7")
    assert b"unread" in open_inference_grpc.format_stream_error("unread")


@pytest.mark.parametrize("call", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_a_model_is_loaded_by_triton_s_message_and_by_kserve_s(call):
    parse_model = open_inference_grpc.parse_repository_model
    assert parse_model(new(f"{call}Request", model_name="m").SerializeToString(), call) == "m"
    assert parse_model(b"\x0a\x01m", call) == "m"  # Number 1 is KServe's `model_name`.
    with pytest.raises(InvalidInputError, match="the name of a model"):
        parse_model(b"", call)


PARSERS = [
    lambda data: read_inputs(open_inference_grpc.parse_infer(data)),
    lambda data: open_inference_grpc.parse_repository_model(data, "RepositoryModelLoad"),
]


@pytest.mark.parametrize("parser", PARSERS)
@given(data=st.binary(max_size=80))
def test_random_bytes_are_a_request_or_a_bad_input(parser, data):
    with contextlib.suppress(InvalidInputError):
        parser(data)


@given(arrays([*NUMBERS, "object"]), st.data())
def test_a_request_that_is_cut_short_or_altered_is_a_request_or_a_bad_input(array, data):
    whole = bytearray(request_for(x=array).SerializeToString())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    for sent in (whole, whole[:position]):
        with contextlib.suppress(InvalidInputError):
            read_inputs(open_inference_grpc.parse_infer(bytes(sent)))


def infer(data):
    call = open_inference_grpc.parse_infer(data)
    return open_inference_grpc.format_infer(
        call, {"y": read_inputs(call)["x"]}, call.model_name, "1"
    )


TRITON = [name for name in [*NUMBERS, "object"] if name != "bfloat16"]


@pytest.mark.parametrize("name", TRITON)
def test_tritonclient_s_own_client_is_answered(serve_grpc, name):
    client = import_client("tritonclient.grpc")
    address = serve_grpc("inference.GRPCInferenceService", ModelInfer=infer)
    array = np.array([[0, 1], [1, 0]]).astype(name)
    if name == "object":
        array = np.array([[b"a", b""], [b"\xff", b"bc"]], object)
    given_input = client.InferInput("x", [2, 2], dtype_of(name).open_inference)
    given_input.set_data_from_numpy(array)
    with client.InferenceServerClient(address) as server:
        outputs = [client.InferRequestedOutput("y")]
        answer = server.infer(
            "m", [given_input], outputs=outputs, request_id="7", client_timeout=60
        )
    assert answer.get_response().id == "7"
    assert same(answer.as_numpy("y"), array)

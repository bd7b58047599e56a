import json

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import open_inference_grpc
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.open_inference_text import format_text, read_text_call
from keras_deepseek.inference.protocols.tensor_bytes import dtype_of, to_bytes
from tests.oracles.protocols import import_client

pytest.importorskip("google.protobuf", reason="protobuf is not installed")


def parse(outputs=("text_output",), parameters=(), **inputs):
    """Returns a parsed request with the inputs as raw bytes."""
    request = new_message("inference.ModelInferRequest", model_name="deepseek", id="7")
    for name, value in inputs.items():
        array = np.array([value], object if isinstance(value, str | bytes) else None)
        datatype = dtype_of(str(array.dtype)).open_inference
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_bytes(array))
    for name, value in dict(parameters).items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        setattr(request.parameters[name], kind[type(value)], value)
    for name in outputs:
        request.outputs.add(name=name)
    return open_inference_grpc.parse_infer(request.SerializeToString())


def read(**request):
    return read_text_call(parse(**request))


def test_settings_come_as_an_input_or_as_the_parameters_of_the_request():
    by_input = read(text_input="Hé", sampling_parameters=json.dumps({"temperature": 0, "n": 2}))
    by_parameters = read(text_input="Hé", parameters={"temperature": 0, "n": 2})
    assert by_input == by_parameters
    assert by_input.prompt == "Hé"
    assert by_input.settings == {"max_tokens": 16, "temperature": 0, "n": 2}


def test_numbers_may_be_sent_as_text():
    sent = {"temperature": "0.5", "max_tokens": "7", "ignore_eos": "true", "stop": "1", "x": "no"}
    settings = read(text_input="a", sampling_parameters=json.dumps(sent)).settings
    expected = {"temperature": 0.5, "max_tokens": 7, "ignore_eos": True, "stop": "1", "x": "no"}
    assert settings == expected


def test_the_prompt_is_in_front_of_an_answer_unless_it_is_streamed_or_excluded():
    assert read(text_input="a").prefix == "a"
    assert read(text_input="a", exclude_input_in_output=True).prefix == ""
    assert read(text_input="a", exclude_input_in_output=False).prefix == "a"
    assert read(text_input="a", stream=True).prefix == ""
    assert read(text_input="a", stream=True).is_streamed


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({}, "no input 'text_input'"),
        ({"text_input": "a", "image": "b"}, "unknown input 'image'"),
        ({"text_input": 3}, "Input 'text_input': received int64; expected BYTES"),
        ({"text_input": "a", "stream": "true"}, "Input 'stream': received object; expected BOOL"),
        ({"text_input": b"\xff"}, "Input 'text_input' is not UTF-8 text"),
        ({"text_input": ["a", "b"]}, "received 2 values; expected one"),
        ({"text_input": "a", "sampling_parameters": "{"}, "'sampling_parameters': .* not JSON"),
        ({"text_input": "a", "sampling_parameters": "[]"}, "Expected a JSON object of settings"),
        (
            {"text_input": "a", "stream": True, "exclude_input_in_output": False},
            "can't begin with the prompt",
        ),
        ({"text_input": "a", "outputs": ["logits"]}, "unknown output 'logits'"),
    ],
)
def test_bad_requests_are_refused(request_fields, message):
    with pytest.raises(InvalidInputError, match=f"(?i){message}"):
        read(**request_fields)


def answer(call, texts, **options):
    data = format_text(call, texts, "deepseek", "3", **options)
    return parse_message("inference.ModelStreamInferResponse", data).infer_response


def test_a_response_has_a_text_of_each_choice_and_says_whether_it_is_the_last():
    response = answer(parse(text_input="a"), ["é", ""], is_last=False)
    assert (response.model_name, response.model_version, response.id) == ("deepseek", "3", "7")
    assert list(response.outputs[0].shape) == [2]
    assert response.raw_output_contents[0] == b"\2\0\0\0\xc3\xa9\0\0\0\0"
    assert not response.parameters["triton_final_response"].bool_param
    last = answer(parse(text_input="a"), None, is_last=True)
    assert not last.outputs
    assert last.parameters["triton_final_response"].bool_param


def test_the_request_and_the_answer_of_tritonclient():
    client = import_client("tritonclient.grpc")
    from tritonclient.grpc._utils import _get_inference_request

    tensor = client.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["Hé".encode()], object))
    request = _get_inference_request(
        infer_inputs=[tensor],
        model_name="deepseek",
        model_version="",
        request_id="7",
        outputs=[client.InferRequestedOutput("text_output")],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters={"max_tokens": 3, "triton_enable_empty_final_response": True},
    )
    call = open_inference_grpc.parse_infer(request.SerializeToString())
    text_call = read_text_call(call)
    assert (text_call.prompt, text_call.settings["max_tokens"]) == ("Hé", 3)
    assert text_call.has_empty_end
    stream = client.service_pb2.ModelStreamInferResponse.FromString(
        format_text(call, ["é"], "deepseek", "1", is_last=True)
    )
    result = client.InferResult(stream.infer_response)
    assert result.as_numpy("text_output").tolist() == ["é".encode()]
    assert result.get_response().parameters["triton_final_response"].bool_param

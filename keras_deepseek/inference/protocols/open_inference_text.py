"""Text requests and responses of Open Inference, with the names of Triton's backend for vLLM.

The prompt is the input `text_input`, and the answer is the output `text_output`: whole, or piece by
piece if the input `stream` is true. The settings are a JSON object in `sampling_parameters`, or the
parameters of the request. They have OpenAI's names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.protocols import open_inference_grpc
from keras_deepseek.inference.protocols.json_text import load_json, load_object
from keras_deepseek.inference.protocols.open_inference import InferCall
from keras_deepseek.inference.protocols.tensor_bytes import string_array

TEXT_OUTPUT = "text_output"

_MAX_TOKENS = 16
"""The most tokens of an answer if a request does not say it, as in vLLM's backend."""

_INPUTS = {
    "text_input": str,
    "stream": bool,
    "sampling_parameters": str,
    "exclude_input_in_output": bool,
}

_WITH_EMPTY_END = "triton_enable_empty_final_response"
_IS_LAST = "triton_final_response"


@dataclass(frozen=True)
class TextCall:
    """A request for a text.

    Args:
        settings: The settings by OpenAI's names, not yet checked. Unknown names are among them.
        is_streamed: True if the answer is returned piece by piece.
        prefix: The text before an answer: the prompt, or nothing.
        has_empty_end: True if a response without outputs ends the answer.
    """

    prompt: str
    settings: dict[str, Any]
    is_streamed: bool = False
    prefix: str = ""
    has_empty_end: bool = False


def read_text_call(call: InferCall) -> TextCall:
    """Reads the inputs and parameters of a `ModelInferRequest` to a language model.

    The answer begins with the prompt unless it is streamed, or `exclude_input_in_output` is true.
    """
    call.check_outputs([TEXT_OUTPUT])
    if any(output.memory is not None for output in call.outputs):
        raise InvalidInputError("Texts are not written to shared memory. Ask for them without it.")
    values: dict[str, Any] = {name: _read_value(name, sent) for name, sent in call.inputs.items()}
    if "text_input" not in values:
        raise InvalidInputError("The request has no input 'text_input', which is the prompt.")
    prompt, is_streamed = values["text_input"], values.get("stream", False)
    excludes_prompt = values.get("exclude_input_in_output", is_streamed)
    if is_streamed and not excludes_prompt:
        raise InvalidInputError(
            "A streamed answer can't begin with the prompt: 'exclude_input_in_output' must be true."
        )
    settings: Mapping[str, Any] = call.parameters
    if "sampling_parameters" in values:
        try:
            settings = load_object(values["sampling_parameters"].encode(), "of settings")
        except InvalidInputError as error:
            raise InvalidInputError(f"Input 'sampling_parameters': {error}") from None
    return TextCall(
        prompt=prompt,
        settings={
            "max_tokens": _MAX_TOKENS,
            **{name: _read_setting(name, value) for name, value in settings.items()},
        },
        is_streamed=is_streamed,
        prefix="" if excludes_prompt else prompt,
        has_empty_end=call.parameters.get(_WITH_EMPTY_END) is True,
    )


def format_text(
    call: InferCall,
    texts: Sequence[str] | None,
    model_name: str,
    model_version: str,
    *,
    is_last: bool,
) -> bytes:
    """Returns a `ModelStreamInferResponse` with a text of each choice; `None` is no output.

    The parameter `triton_final_response` is true in the last response to a request.
    """
    outputs = {}
    if texts is None:
        call = replace(call, outputs=())
    else:
        outputs[TEXT_OUTPUT] = string_array([text.encode() for text in texts])
    parameters = {_IS_LAST: is_last}
    return open_inference_grpc.format_infer(
        call, outputs, model_name, model_version, in_stream=True, parameters=parameters
    )


def _read_value(name: str, sent: open_inference_grpc.SentTensor) -> Any:
    """Returns the one value of an input."""
    kind = _INPUTS.get(name)
    if kind is None:
        raise InvalidInputError(unknown_name_message("input", name, _INPUTS))
    array = open_inference_grpc.read_tensor(sent)
    if array.size != 1:
        raise InvalidInputError(f"Input {name!r}: received {array.size} values; expected one.")
    value = array.item()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"Input {name!r} is not UTF-8 text: {error}.") from None
    if not isinstance(value, kind):
        datatype = "BYTES" if kind is str else "BOOL"
        raise InvalidInputError(f"Input {name!r}: received {array.dtype}; expected {datatype}.")
    return value


def _read_setting(name: str, value: Any) -> Any:
    """Returns a setting. Triton's clients send numbers as text, too."""
    if not isinstance(value, str) or name == "stop":
        return value
    try:
        return load_json(value.encode())
    except InvalidInputError:
        return value

"""Requests and responses of Open Inference over gRPC, from bytes and to bytes.

The values of an input are raw bytes in `raw_input_contents`, or a list in its `contents`. A
response has the same form as its request.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.grpc_messages import (
    Message,
    new_message,
    parse_message,
    write_message,
)
from keras_deepseek.inference.protocols.open_inference import (
    InferCall,
    RequestedOutput,
    read_parameters,
)
from keras_deepseek.inference.protocols.open_inference_parameters import CLASSIFICATION, read_count
from keras_deepseek.inference.protocols.shared_memory import (
    OpenMemory,
    SharedInput,
    find_range,
)
from keras_deepseek.inference.protocols.tensor_bytes import (
    Dtype,
    check_count,
    check_shape,
    check_tensors,
    dtype_of_numpy,
    dtype_of_open_inference,
    from_bytes,
    shape_array,
    string_array,
    strings_of,
    to_bytes,
)
from keras_deepseek.inference.protocols.tensor_proto import listed_values

_PACKAGE = "inference."


class SentTensor(NamedTuple):
    """An input of a `ModelInferRequest`, with its raw bytes if the request has raw bytes."""

    message: Message
    raw: bytes | memoryview | None


def parse_infer(data: bytes, open_memory: OpenMemory | None = None) -> InferCall:
    """Parses a `ModelInferRequest`, whose inputs `bind_tensors` reads.

    Without `open_memory` shared memory is refused.
    """
    message = parse_message(_PACKAGE + "ModelInferRequest", data)
    raw = message.raw_input_contents
    inputs: dict[str, SentTensor] = {}
    shared: dict[str, SharedInput] = {}
    sent: list[Message] = []
    for tensor in message.inputs:
        if tensor.name in inputs or tensor.name in shared:
            raise InvalidInputError(f"Input {tensor.name!r} was sent twice.")
        where = f"Input {tensor.name!r}"
        memory = find_range(_read_parameters(tensor.parameters, where), where, open_memory)
        if memory is None:
            inputs[tensor.name] = SentTensor(tensor, None)
            sent.append(tensor)
        else:
            shared[tensor.name] = SharedInput(memory, partial(SentTensor, tensor))
    if raw:
        if len(raw) != len(sent):
            raise InvalidInputError(
                f"Received {len(raw)} raw_input_contents for {len(sent)} inputs."
            )
        inputs = {tensor.name: SentTensor(tensor, raw[n]) for n, tensor in enumerate(sent)}
    is_raw = bool(raw or shared)
    return InferCall(
        inputs=inputs,
        outputs=tuple(
            _read_requested_output(output, is_raw, open_memory) for output in message.outputs
        ),
        shared=shared,
        is_binary=is_raw,
        id=message.id,
        parameters=_read_parameters(message.parameters, "The request"),
        model_name=message.model_name,
        model_version=message.model_version,
    )


def bind_tensors(tensors: Mapping[str, SentTensor], signature: Signature) -> dict[str, Array]:
    """Converts the inputs of a `ModelInferRequest` to the arrays of a signature.

    Names, dtypes and shapes are checked before an array is made.
    """
    kinds = {name: _kind_of(tensor.message) for name, tensor in tensors.items()}
    check_tensors(kinds, signature)
    return signature.bind({name: read_tensor(tensor) for name, tensor in tensors.items()})


def read_tensor(sent: SentTensor) -> Array:
    """Converts one input of a `ModelInferRequest` to an array. Raw bytes are not copied."""
    tensor = sent.message
    where = f"Input {tensor.name!r}"
    dtype, shape = _kind_of(tensor)
    if sent.raw is None:
        return shape_array(_read_contents(tensor.contents, dtype, shape, where), shape, where)
    if tensor.HasField("contents"):
        raise InvalidInputError(
            f"{where}: received 'contents' beside raw_input_contents or shared memory; expected "
            "one of them."
        )
    return from_bytes(sent.raw, dtype, shape, where)


def format_infer(
    call: InferCall,
    outputs: Mapping[str, Array],
    model_name: str,
    model_version: str,
    *,
    in_stream: bool = False,
    parameters: Mapping[str, bool] | None = None,
) -> bytes:
    """Returns the `ModelInferResponse` to a call; `in_stream` wraps it for a stream."""
    response = _infer_response(call, outputs, model_name, model_version)
    for name, value in (parameters or {}).items():
        response.parameters[name].bool_param = value
    if in_stream:
        return write_message(_PACKAGE + "ModelStreamInferResponse", infer_response=response)
    return bytes(response.SerializeToString())


def format_stream_error(error_message: str, call: InferCall | None = None) -> bytes:
    """Returns the `ModelStreamInferResponse` of a failed request. The stream goes on.

    The `id` of the call is returned; `call` is `None` if the request was malformed.
    """
    response = new_message(_PACKAGE + "ModelInferResponse", id="" if call is None else call.id)
    return write_message(
        _PACKAGE + "ModelStreamInferResponse", error_message=error_message, infer_response=response
    )


def parse_repository_model(data: bytes, call: str) -> str:
    """Returns the name of the model that is to be loaded or unloaded.

    The message is in Triton's or in KServe's form, of a `"RepositoryModelLoad"` or
    `"RepositoryModelUnload"`.
    """
    message = parse_message(f"{_PACKAGE}{call}Request", data)
    name: str = message.model_name or message.repository_name
    if not name:
        raise InvalidInputError(f"{call}: expected the name of a model.")
    return name


def _kind_of(tensor: Message) -> tuple[Dtype, tuple[int, ...]]:
    where = f"Input {tensor.name!r}"
    return dtype_of_open_inference(tensor.datatype, where), check_shape(tensor.shape, where)


def _read_contents(contents: Message, dtype: Dtype, shape: tuple[int, ...], where: str) -> Array:
    filled = [field.name for field, _ in contents.ListFields()]
    if any(name != dtype.open_inference_values for name in filled):
        raise InvalidInputError(
            f"{where}: received {filled}; {dtype.open_inference} comes in "
            f"{dtype.open_inference_values or 'raw_input_contents'}."
        )
    if not dtype.open_inference_values:
        return np.zeros(0, dtype.numpy)
    values = getattr(contents, dtype.open_inference_values)
    check_count(len(values), shape, where)  # Before an array is made of them.
    if dtype.is_bytes:
        return string_array(list(values))
    return listed_values(values, dtype.numpy, where)


def _read_requested_output(
    output: Message, is_raw: bool, open_memory: OpenMemory | None
) -> RequestedOutput:
    where = f"Output {output.name!r}"
    parameters = _read_parameters(output.parameters, where)
    count = read_count(parameters.get(CLASSIFICATION), where)
    memory = find_range(parameters, where, open_memory)
    return RequestedOutput(output.name, is_raw, count, memory)


def _read_parameters(parameters: Mapping[str, Message], where: str) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, kind) if kind else None
    return read_parameters(values, where)


def _infer_response(
    call: InferCall, outputs: Mapping[str, Array], model_name: str, model_version: str
) -> Message:
    message = new_message(
        _PACKAGE + "ModelInferResponse",
        model_name=model_name,
        model_version=model_version,
        id=call.id,
    )
    # `contents` has no field for 16-bit floats. Raw bytes are for all outputs or for none.
    selected = [
        (output, array, dtype_of_numpy(array.dtype)) for output, array in call.select(outputs)
    ]
    is_raw = call.is_binary or any(
        output.memory is not None or not dtype.open_inference_values
        for output, _, dtype in selected
    )
    for output, array, dtype in selected:
        tensor = message.outputs.add(
            name=output.name, datatype=dtype.open_inference, shape=array.shape
        )
        if output.memory is not None:
            for name, value in output.memory.write(array, f"Output {output.name!r}").items():
                kind = "string_param" if isinstance(value, str) else "int64_param"
                setattr(tensor.parameters[name], kind, value)
            message.raw_output_contents.append(b"")  # Clients count one for each output.
        elif is_raw:
            message.raw_output_contents.append(to_bytes(array))
        else:
            values = strings_of(array) if dtype.is_bytes else array.ravel().tolist()
            getattr(tensor.contents, dtype.open_inference_values).extend(values)
    return message

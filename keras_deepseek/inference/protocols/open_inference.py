"""Inference requests and responses of Open Inference (KServe V2, Triton) over REST.

The values of a tensor are in the JSON, flat or nested, or follow it as raw bytes: the binary tensor
extension. For raw bytes the header `Inference-Header-Content-Length` has the length of the JSON.
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from keras_deepseek.artifacts.signature import Array, TensorSpec
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.protocols.json_text import load_json, refuse_text, to_json
from keras_deepseek.inference.protocols.open_inference_parameters import (
    CLASSIFICATION,
    largest,
    read_count,
)
from keras_deepseek.inference.protocols.shared_memory import (
    REGION,
    MemoryRange,
    OpenMemory,
    SharedInput,
    find_range,
)
from keras_deepseek.inference.protocols.tensor_bytes import (
    Dtype,
    check_shape,
    dtype_of_numpy,
    dtype_of_open_inference,
    from_bytes,
    shape_array,
    string_array,
    strings_of,
    to_bytes,
)

HEADER = "Inference-Header-Content-Length"
"""The HTTP header with the number of bytes of JSON, if raw bytes follow it."""


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for.

    `is_binary` returns its values as raw bytes. `classes` is the number of the largest values of
    each row to return as text in place of the output; 0 for the output itself. `memory` is where to
    write it instead of returning it.
    """

    name: str
    is_binary: bool = False
    classes: int = 0
    memory: MemoryRange | None = None


@dataclass(frozen=True)
class InferCall:
    """A request for inference, over REST or gRPC.

    Args:
        inputs: Arrays by input name, over gRPC `SentTensor`s, not yet checked against a signature.
        outputs: The outputs to return. Empty for all.
        is_binary: True to return outputs that are not in `outputs` as raw bytes.
        id: The client's id of the request, which the response returns.
        model_name: Empty over REST, where the path has it.
        model_version: Likewise.
        shared: Inputs in shared memory, which `read_shared` reads.
    """

    inputs: Mapping[str, Any]
    outputs: tuple[RequestedOutput, ...] = ()
    is_binary: bool = False
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    model_name: str = ""
    model_version: str = ""
    shared: Mapping[str, SharedInput] = field(default_factory=dict)

    @property
    def shared_input_bytes(self) -> int:
        """The bytes that `read_shared` copies."""
        return sum(tensor.memory.byte_size for tensor in self.shared.values())

    @property
    def shared_output_bytes(self) -> int:
        """The bytes of shared memory that the answer may fill."""
        return sum(output.memory.byte_size for output in self.outputs if output.memory is not None)

    def read_shared(self, max_bytes: int) -> "InferCall":
        """Returns a copy whose inputs in shared memory are read, up to `max_bytes` of them."""
        if not self.shared:
            return self
        if self.shared_input_bytes > max_bytes:
            raise InvalidInputError(
                f"The inputs in shared memory have {self.shared_input_bytes} bytes; a request may "
                f"have {max_bytes}. Send fewer rows, or raise --max-body-bytes."
            )
        inputs = {
            name: tensor.make(tensor.memory.read(f"Input {name!r}"))
            for name, tensor in self.shared.items()
        }
        return replace(self, inputs={**self.inputs, **inputs}, shared={})

    def select(self, outputs: Mapping[str, Array]) -> list[tuple[RequestedOutput, Array]]:
        """Returns the outputs that an inference request asks for, in the request's order."""
        self.check_outputs(outputs)
        requested = self.outputs or tuple(RequestedOutput(name, self.is_binary) for name in outputs)
        return [
            (output, outputs[output.name])
            if not output.classes
            else (output, largest(outputs[output.name], output.classes, f"Output {output.name!r}"))
            for output in requested
        ]

    def check_outputs(self, names: Iterable[str]) -> None:
        """Raises `InvalidInputError` if an output is wanted that is not among `names`."""
        output_names = list(names)
        for output in self.outputs:
            if output.name not in output_names:
                raise InvalidInputError(unknown_name_message("output", output.name, output_names))


def parse_infer(
    body: bytes, header_length: str | None = None, open_memory: OpenMemory | None = None
) -> InferCall:
    """Parses the body of a `POST /v2/models/NAME/infer`.

    Every length is compared with the bytes that are there before it is used. `header_length` is the
    header `Inference-Header-Content-Length`: the number of bytes of JSON, which raw bytes of
    tensors follow. With `None` the whole body is JSON. Without `open_memory` shared memory is
    refused.
    """
    text, raw_bytes = _split(body, header_length)
    content = load_json(text)
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        raise InvalidInputError(
            f"Expected a JSON object with a list of 'inputs'; received {reprlib.repr(content)}."
        )
    inputs: dict[str, Array] = {}
    shared: dict[str, SharedInput] = {}
    position = 0
    for tensor in content["inputs"]:
        name = _name_of(tensor, "inputs")
        where = f"Input {name!r}"
        if name in inputs or name in shared:
            raise InvalidInputError(f"{where} was sent twice.")
        parameters = read_parameters(tensor.get("parameters"), where)
        memory = find_range(parameters, where, open_memory)
        if memory is not None:
            shared[name] = _read_shared(tensor, memory, parameters, where)
            continue
        size = parameters.get("binary_data_size")
        inputs[name], size = _read_tensor(tensor, size, raw_bytes[position:], where)
        position += size
    if position != len(raw_bytes):
        raise InvalidInputError(
            f"Received {len(raw_bytes)} bytes after the JSON. Expected {position}, the sum of the "
            "'binary_data_size' of the inputs."
        )
    return _with_outputs(content, inputs, shared, open_memory)


def encode_infer(
    call: InferCall, outputs: Mapping[str, Array], model_name: str, model_version: str
) -> tuple[bytes, int | None]:
    """Returns the body of the response, and the value of `Inference-Header-Content-Length`.

    The value is the number of bytes of JSON, or `None` if all are JSON and the header is not sent.
    """
    tensors, parts = [], []
    for output, array in call.select(outputs):
        dtype = dtype_of_numpy(array.dtype)
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": dtype.open_inference,
            "shape": list(array.shape),
        }
        if output.memory is not None:
            tensor["parameters"] = output.memory.write(array, f"Output {output.name!r}")
        elif output.is_binary:
            parts.append(to_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = _to_data(output.name, array, dtype)
        tensors.append(tensor)
    content = {"model_name": model_name, "model_version": model_version, "outputs": tensors}
    if call.id:
        content["id"] = call.id
    text = to_json(content)
    return (b"".join([text, *parts]), len(text)) if parts else (text, None)


def read_parameters(value: Any, where: str) -> dict[str, Any]:
    """Returns the parameters of a request or of a tensor in it."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"{where}: 'parameters' must be an object; received {type(value).__name__}."
        )
    return value


def _split(body: bytes, header_length: str | None) -> tuple[bytes | memoryview, memoryview]:
    view = memoryview(body)
    if header_length is None:
        return body, view[:0]
    is_number = header_length.isascii() and header_length.isdecimal()
    # Compares the number of digits first: Python can't read a number of thousands of digits.
    is_short = len(header_length) <= len(str(len(body)))
    if not is_number or not is_short or int(header_length) > len(body):
        raise InvalidInputError(
            f"Received {HEADER}: {header_length[:30]!r}. Expected a number of bytes from 0 to "
            f"{len(body)}, the length of the body."
        )
    return view[: int(header_length)], view[int(header_length) :]


def _name_of(tensor: Any, where: str) -> str:
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str):
        raise InvalidInputError(
            f"Each of {where!r} must be an object with a 'name', a string; received "
            f"{reprlib.repr(tensor)}."
        )
    return name


def _read_kind(tensor: dict[str, Any], where: str) -> tuple[Dtype, tuple[int, ...]]:
    dtype = dtype_of_open_inference(tensor.get("datatype"), where)
    sizes = tensor.get("shape")
    if not isinstance(sizes, list):
        raise InvalidInputError(
            f"{where}: expected 'shape', a list of integers; received {reprlib.repr(sizes)}."
        )
    return dtype, check_shape(sizes, where)


def _read_shared(
    tensor: dict[str, Any], memory: MemoryRange, parameters: dict[str, Any], where: str
) -> SharedInput:
    """Parses one input tensor whose values are in shared memory, which is not yet read."""
    dtype, shape = _read_kind(tensor, where)
    if "data" in tensor or "binary_data_size" in parameters:
        raise InvalidInputError(
            f"{where}: received values beside the parameter {REGION!r}; expected one of them."
        )
    return SharedInput(memory, partial(from_bytes, dtype=dtype, shape=shape, where=where))


def _read_tensor(
    tensor: dict[str, Any], size: Any, raw_bytes: memoryview, where: str
) -> tuple[Array, int]:
    """Parses one input tensor, whose 'binary_data_size' is `size`, or `None`.

    Returns it, and the number of its bytes in `raw_bytes`.
    """
    dtype, shape = _read_kind(tensor, where)
    if ("data" in tensor) == (size is not None):
        raise InvalidInputError(
            f"{where}: expected either 'data' or the parameter 'binary_data_size', received "
            f"{'neither' if size is None else 'both'}."
        )
    if size is None:
        return _from_data(tensor["name"], tensor["data"], dtype, shape), 0
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(raw_bytes):
        raise InvalidInputError(
            f"{where}: received binary_data_size {size!r:.30}. Expected the number of its bytes, "
            f"at most the {len(raw_bytes)} that are left of the body."
        )
    return from_bytes(raw_bytes[:size], dtype, shape, where), size


def _from_data(name: str, data: Any, dtype: Dtype, shape: tuple[int, ...]) -> Array:
    where = f"Input {name!r}"
    if dtype.is_bytes:
        return shape_array(string_array(_texts_of(data, where)), shape, where)
    spec = TensorSpec(name, shape, dtype.name)
    refuse_text(data, spec)
    return shape_array(spec.cast(data), shape, where)


def _texts_of(data: Any, where: str) -> list[bytes]:
    values: list[bytes] = []
    stack = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(reversed(value))
        elif isinstance(value, str):
            values.append(value.encode(errors="surrogatepass"))
        else:
            raise InvalidInputError(f"{where}: expected strings; received {value!r:.50}.")
    return values


def _to_data(name: str, array: Array, dtype: Dtype) -> Any:
    if not dtype.is_bytes:
        return array.ravel()
    try:
        return [value.decode() for value in strings_of(array)]
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"Output {name!r} is not UTF-8 text, so JSON can't hold it. Ask for it with the "
            "parameter 'binary_data'."
        ) from error


def _with_outputs(
    content: Mapping[str, Any],
    inputs: dict[str, Array],
    shared: dict[str, SharedInput],
    open_memory: OpenMemory | None,
) -> InferCall:
    parameters = read_parameters(content.get("parameters"), "The request")
    is_binary = _flag(parameters, "binary_data_output", default=False)
    outputs = content.get("outputs")
    outputs = [] if outputs is None else outputs
    if not isinstance(outputs, list):
        raise InvalidInputError(
            f"'outputs' must be a list of objects with a 'name'; received {reprlib.repr(outputs)}."
        )
    identity = content.get("id", "")
    if not isinstance(identity, str):
        raise InvalidInputError(f"'id' must be a string; received {reprlib.repr(identity)}.")
    return InferCall(
        inputs=inputs,
        outputs=tuple(_read_requested_output(output, is_binary, open_memory) for output in outputs),
        is_binary=is_binary,
        id=identity,
        parameters=parameters,
        shared=shared,
    )


def _read_requested_output(
    output: Any, is_binary: bool, open_memory: OpenMemory | None
) -> RequestedOutput:
    name = _name_of(output, "outputs")
    parameters = read_parameters(output.get("parameters"), f"Output {name!r}")
    return RequestedOutput(
        name,
        _flag(parameters, "binary_data", is_binary),
        read_count(parameters.get(CLASSIFICATION), f"Output {name!r}"),
        find_range(parameters, f"Output {name!r}", open_memory),
    )


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInputError(
            f"The parameter {name!r} must be true or false; received {reprlib.repr(value)}."
        )
    return value

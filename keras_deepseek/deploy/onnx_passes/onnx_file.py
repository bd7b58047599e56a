"""Names of an ONNX graph, and its file. Weights that one file can't hold are in a second one."""

from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.tensor_values import LARGEST_FILE
from keras_deepseek.deploy.onnx_passes.graph_view import import_package, inner_graphs
from keras_deepseek.errors import InvalidInputError

_GRAPH, _INITIALIZER = 7, 5
"""The numbers of two fields in the protocol buffers of ONNX: of a model, and of its graph."""


def save(model: Any, path: Path) -> None:
    """Writes a graph as `path`, and its weights as `path.data` if one file can't hold them."""
    onnx = import_package("onnx")
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE:
        onnx.save(
            model, path, save_as_external_data=True, location=_data(path).name, size_threshold=1024
        )
        return
    light, weights = _without_weights(model), model.graph.initializer
    graph = light.graph.SerializeToString(deterministic=True)
    light.ClearField("graph")
    sizes = [tensor.ByteSize() for tensor in weights]
    length = len(graph) + sum(len(_header(_INITIALIZER, size)) + size for size in sizes)
    with path.open("wb") as file:  # One weight at a time, so that no copy of all is made.
        file.write(light.SerializeToString(deterministic=True) + _header(_GRAPH, length) + graph)
        for tensor, size in zip(weights, sizes, strict=True):
            file.write(_header(_INITIALIZER, size))
            file.write(tensor.SerializeToString(deterministic=True))


def check(model: Any) -> None:
    """Raises an error for nodes that ONNX doesn't define.

    Its checker would take the memory of all weights twice, so it gets them as inputs. The runtime
    checks them when it loads the file.
    """
    onnx = import_package("onnx")
    light = _without_weights(model)
    for tensor in model.graph.initializer:
        spec = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        light.graph.input.append(spec)
    onnx.checker.check_model(light)


def _without_weights(model: Any) -> Any:
    light = import_package("onnx").ModelProto()
    _copy_fields(model, light, without="graph")
    _copy_fields(model.graph, light.graph, without="initializer")
    return light


def _copy_fields(source: Any, target: Any, without: str) -> None:
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if isinstance(value, str | int | float | bytes):
            setattr(target, field.name, value)
        elif hasattr(value, "ListFields"):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).extend(value)


def _header(field: int, length: int) -> bytes:
    """Returns what stands before a message in a protocol buffer: its field and its length."""
    header = bytearray([field << 3 | 2])  # 2 means bytes of a length.
    while length >= 1 << 7:  # Seven bits a byte, and an eighth one if more follow.
        header.append(length % (1 << 7) | 1 << 7)
        length >>= 7
    header.append(length)
    return bytes(header)


def is_beside(path: Path) -> bool:
    """Returns True if the weights of a file are in a second one."""
    return _data(path).exists()


def _data(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def rename(graph: Any, signature: Signature) -> None:
    """Renames a graph's inputs and outputs to those of a signature, by order, in place."""
    _separate_outputs(graph)
    new_names = {}
    for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        for value, spec in zip(values, specs, strict=True):
            new_names[value.name] = spec.name
            _name_free_axes(value, spec)
    _rename_tensors(graph, new_names, used_names=set(new_names.values()) - set(new_names))


def check_names(signature: Signature) -> None:
    """Rejects a signature in which an output has the same name as an input."""
    both = {spec.name for spec in signature.inputs} & {spec.name for spec in signature.outputs}
    if both:
        raise InvalidInputError(
            "ONNX has one tensor per name, and these are names of an input and of an output: "
            f"{', '.join(sorted(both))}. Give the outputs other names."
        )


def _separate_outputs(graph: Any) -> None:
    """Inserts an `Identity` for each output that is also an input or another output."""
    used_names = {value.name for value in graph.input}
    for index, value in enumerate(graph.output):
        if value.name in used_names:
            name = f"{value.name}__output_{index}"
            graph.node.add(op_type="Identity", input=[value.name], output=[name])
            value.name = name
        used_names.add(value.name)


def _name_free_axes(value: Any, spec: TensorSpec) -> None:
    for axis, (size, dim) in enumerate(
        zip(spec.shape, value.type.tensor_type.shape.dim, strict=False)
    ):
        if size is None:
            dim.dim_param = "batch" if axis == 0 else f"{spec.name}_axis_{axis}"


def _rename_tensors(graph: Any, new_names: dict[str, str], used_names: set[str]) -> None:
    """Renames tensors in a graph and its subgraphs.

    Another tensor whose name is in `used_names` gets the suffix `__inner`.
    """

    def new_name(name: str) -> str:
        return new_names.get(name, f"{name}__inner" if name in used_names else name)

    for node in graph.node:
        node.input[:] = [new_name(name) for name in node.input]
        node.output[:] = [new_name(name) for name in node.output]
        for inner in inner_graphs(node):
            _rename_tensors(inner, new_names, used_names)
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = new_name(value.name)

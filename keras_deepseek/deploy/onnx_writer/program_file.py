"""The ONNX model of a written graph: inputs, outputs, the names of free axes, and constants."""

from collections.abc import Sequence
from typing import Any

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy.onnx_passes.fold_scales import fold_scales
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, import_package, names_read
from keras_deepseek.deploy.onnx_writer import fold
from keras_deepseek.deploy.onnx_writer.writer import TYPES, Writer
from keras_deepseek.graph.size_expressions import FreeAxis


def make_file(
    writer: Writer, signature: Signature, axes: Sequence[FreeAxis], *, simplified: bool, fused: bool
) -> Any:
    """Returns the `onnx.ModelProto` of a writer's graph. The writer is of no use afterwards.

    `simplified` folds constants and merges equal nodes; `fused` moves factors into weights.
    """
    onnx = import_package("onnx")
    graph = writer.graph
    names = {spec.name for spec in signature.outputs}
    sources = {
        spec.name: writer.cast(writer.name(value), value.dtype, spec.dtype)
        for spec, value in zip(signature.outputs, graph.outputs, strict=True)
    }
    make_node = onnx.helper.make_node
    nodes = writer.nodes + [
        make_node("Identity", [source], [name], name=name) for name, source in sources.items()
    ]
    arrays = writer.take_constants()
    nodes = fold.drop_unused(nodes, names)
    if simplified:
        nodes = fold.fold_constants(nodes, arrays, writer.opset, names)
        nodes = fold.drop_unused(fold.merge_equal(nodes, names), names)
    if fused:
        nodes = fold.fold_into_convolutions(nodes, arrays)
    nodes = _name_outputs(nodes, names, {spec.name for spec in signature.inputs})
    axis_names = _axis_names(signature, axes)
    size_names = {
        graph.inputs[index].spec.shape[axis]: name for (index, axis), name in axis_names.items()
    }

    def describe(spec: TensorSpec, names: Sequence[str | None]) -> Any:
        pairs = zip(spec.shape, names, strict=True)
        shape = [name if size is None else size for size, name in pairs]
        return onnx.helper.make_tensor_value_info(spec.name, TYPES[spec.dtype], shape)

    inputs = [
        describe(spec, [axis_names.get((index, axis)) for axis in range(len(spec.shape))])
        for index, spec in enumerate(signature.inputs)
    ]
    outputs = [
        describe(spec, [size_names.get(int(size)) for size in value.shape])
        for spec, value in zip(signature.outputs, graph.outputs, strict=True)
    ]
    proto = fold.make_model(onnx.helper.make_graph(nodes, "graph", inputs, outputs), writer.opset)
    read = {name for node in nodes for name in names_read(node)}
    for name in [name for name in arrays if name in read]:
        array = arrays.pop(name)
        tensor = proto.graph.initializer.add(name=name, data_type=TYPES[str(array.dtype)])
        tensor.dims.extend(array.shape)
        tensor.raw_data = array.tobytes()
    if fused:
        fold_scales(GraphView(proto))
    return proto


def _axis_names(signature: Signature, axes: Sequence[FreeAxis]) -> dict[tuple[int, int], str]:
    """Returns the names of free axes by input and axis. Axes that are always equal share one."""
    names = {}
    for free in axes:
        index, axis = free.input_axes[0]
        name = "batch" if axis == 0 else f"{signature.inputs[index].name}_axis_{axis}"
        names.update(dict.fromkeys(free.input_axes, name))
    return names


def _name_outputs(nodes: Sequence[Any], outputs: set[str], inputs: set[str]) -> list[Any]:
    """Leaves out the `Identity` before an output, where its tensor can have the output's name."""
    makers = {name for node in nodes for name in node.output} - outputs - inputs
    names: dict[str, str] = {}
    remaining = []
    for node in nodes:
        is_output = node.op_type == "Identity" and node.output[0] in outputs
        if is_output and node.input[0] in makers and node.input[0] not in names:
            names[node.input[0]] = node.output[0]
        else:
            remaining.append(node)
    fold.rename(remaining, names)
    for node in remaining:
        node.output[:] = [names.get(name, name) for name in node.output]
    return remaining

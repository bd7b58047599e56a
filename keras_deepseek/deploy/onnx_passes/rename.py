"""Restoring of the model's input and output names, which exporters lose or replace."""

from typing import Any

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.deploy.onnx_passes.inner_graphs import inner_graphs
from keras_deepseek.errors import InvalidInputError


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

    Other subgraph tensors whose names are taken get new ones.
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

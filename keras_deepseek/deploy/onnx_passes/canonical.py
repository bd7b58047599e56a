"""Canonical node order and names, so that exports of one model are identical byte for byte.

Exporters number nodes by how many they wrote before. Here the nodes are put in the order in which
the outputs need them, and are named by operator and number. Weights are named by the first node
that needs them. The names that a backend gave are not kept: of two equal nodes it keeps one or the
other.
"""

from collections.abc import Iterator
from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import inner_graphs, replace_inputs
from keras_deepseek.errors import ExportError


def make_canonical(model: Any) -> None:
    """Sorts and renames nodes and weights canonically, and removes unused ones, in place.

    Inputs and outputs keep their names.
    """
    graph = model.graph
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        for inner in inner_graphs(node):
            _settle_copies(inner)
    _order(graph)
    _rename(graph, names, set(names.values()))
    opsets = sorted(model.opset_import, key=lambda opset: str(opset.domain))
    versions = [(opset.domain, opset.version) for opset in opsets]
    del model.opset_import[:]
    for domain, version in versions:
        model.opset_import.add(domain=domain, version=version)


def _settle_copies(graph: Any) -> None:
    """Removes `Identity` copies in a subgraph, except those that give an output its own name.

    An exporter copies either of two equal outputs.
    """
    for node in graph.node:
        for inner in inner_graphs(node):
            _settle_copies(inner)
    copies = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}

    def source(name: str) -> str:
        while name in copies:
            name = copies[name]
        return name

    _replace(graph.node, [node for node in graph.node if node.op_type != "Identity"])
    replace_inputs(graph, source)
    computed = {name for node in graph.node for name in node.output}
    for index, value in enumerate(graph.output):
        value.name = source(value.name)
        if value.name not in computed:  # An input, a tensor of the graph around, or another output.
            name = f"{value.name}__copy_{index}"
            graph.node.add(op_type="Identity", input=[value.name], output=[name])
            value.name = name
        computed.discard(value.name)


def _order(graph: Any) -> None:
    """Sorts the nodes and weights of a graph by first need, from the outputs back, in place."""
    for node in graph.node:
        for inner in inner_graphs(node):
            _order(inner)
    producers = {name: node for node in graph.node for name in node.output if name}
    ordered, done, begun = [], set(), set()
    stack = [(value.name, False) for value in reversed(graph.output)]
    while stack:  # Depth first, and not by calls: graphs are deep.
        name, is_expanded = stack.pop()
        node = producers.get(name)
        if node is None or id(node) in done:
            continue
        if is_expanded:
            done.add(id(node))
            ordered.append(node)
            continue
        if id(node) in begun:
            raise ExportError(f"The ONNX graph has a cycle at {name!r}, of {node.op_type}.")
        begun.add(id(node))
        stack.append((name, True))
        stack.extend((needed, False) for needed in reversed(list(_needs(node))))
    weights = {tensor.name: tensor for tensor in graph.initializer}
    used = dict.fromkeys(
        name for node in ordered for name in _needs(node) if name in weights
    ) | dict.fromkeys(value.name for value in graph.output if value.name in weights)
    _replace(graph.node, ordered)
    _replace(graph.initializer, [weights[name] for name in used])
    del graph.value_info[:]


def _replace(field: Any, values: list[Any]) -> None:
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)


def _needs(node: Any) -> Iterator[str]:
    """Yields the names of the tensors that a node and its subgraphs read from the node's graph."""
    yield from (name for name in node.input if name)
    for inner in inner_graphs(node):
        inner_names = {value.name for value in (*inner.input, *inner.initializer)}
        inner_names |= {name for inner_node in inner.node for name in inner_node.output}
        needed = [name for inner_node in inner.node for name in _needs(inner_node)]
        needed += [value.name for value in inner.output]
        yield from (name for name in needed if name not in inner_names)


def _rename(graph: Any, names: dict[str, str], used_names: set[str]) -> None:
    """Renames all tensors, nodes and weights of a graph and its subgraphs, in place.

    Fills `names`, the new names by the old ones, and `used_names`, all new names in the file.
    """

    # An optional input that is left out has the name "", which stays.
    def new_name(old: str, base: str) -> str:
        if old and old not in names:
            names[old] = f"{base}_{len(used_names)}"
            while names[old] in used_names:
                names[old] += "_"
            used_names.add(names[old])
        return names.get(old, "")

    graph.doc_string = ""
    for value in graph.input:
        value.name, value.doc_string = new_name(value.name, "input"), ""
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        node.input[:] = [new_name(name, f"{node.name}/weight") for name in node.input]
        node.output[:] = [new_name(name, node.op_type) for name in node.output]
        node.doc_string = ""
        del node.metadata_props[:]  # Stack traces, with paths of this machine.
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("t"):
                attribute.t.name = ""
        for inner in inner_graphs(node):
            inner.name = f"{node.name}_body"
            for value in (*inner.input, *inner.output):
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param:  # The exporter numbers these names.
                        dim.ClearField("dim_param")
            _rename(inner, names, used_names)
    for value in graph.output:
        value.name, value.doc_string = new_name(value.name, "output"), ""
    for tensor in graph.initializer:
        tensor.name, tensor.doc_string = new_name(tensor.name, "weight"), ""

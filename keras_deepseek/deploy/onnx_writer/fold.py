"""Simplifications of a graph before it is written: constants, equal nodes, convolutions.

All functions take and return the nodes of a graph in order. `arrays` holds its constants by name.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import (
    attribute,
    import_package,
    in_both_orders,
    inner_graphs,
    names_read,
)

_LARGE = 2**22
"""Bytes from which on a computed constant is left to the runtime, if the file would grow by it."""
_BFLOAT16 = 16
_OLD_IR_VERSION = 8


def rename(nodes: Sequence[Any], names: dict[str, str]) -> None:
    """Renames tensors that nodes and bodies in them read, in place."""
    for node in nodes if names else ():
        node.input[:] = [names.get(name, name) for name in node.input]
        for inner in inner_graphs(node):
            rename(inner.node, names)
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def drop_unused(nodes: Sequence[Any], outputs: Collection[str]) -> list[Any]:
    """Leaves out the nodes that no output needs."""
    needed, used = set(outputs), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            used.append(node)
            needed.update(names_read(node))
    return used[::-1]


def merge_equal(nodes: Sequence[Any], outputs: Collection[str]) -> list[Any]:
    """Leaves out nodes that compute what an earlier node computes."""
    first_nodes: dict[Any, Any] = {}
    names: dict[str, str] = {}
    distinct = []
    for node in nodes:
        rename([node], names)
        attributes = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
        key = node.op_type, tuple(node.input), tuple(attributes)
        first = first_nodes.setdefault(key, node)
        if first is node or not set(outputs).isdisjoint(node.output):
            distinct.append(node)
        else:
            names.update(zip(node.output, first.output, strict=True))
    return distinct


def fold_constants(
    nodes: Sequence[Any], arrays: dict[str, Array], opset: int, outputs: Collection[str] = ()
) -> list[Any]:
    """Computes what no input changes, once, by onnxruntime; adds the results to `arrays`."""
    constant_names, constant, variable = set(arrays), [], []
    for node in nodes:
        if _is_constant(node, constant_names, arrays) and not set(outputs) & set(node.output):
            constant.append(node)
            constant_names.update(node.output)
        else:
            variable.append(node)
    read = {name for node in variable for name in names_read(node)}
    names = sorted(name for node in constant for name in node.output if name in read)
    if not names:
        return variable
    computed = _compute(constant, names, arrays, opset)
    large = {
        name
        for name, array in computed.items()
        if array.nbytes > _LARGE
        and _saved_bytes(drop_unused(constant, [name]), arrays, read) < array.nbytes // 2
    }
    arrays.update({name: array for name, array in computed.items() if name not in large})
    return [*drop_unused(constant, large), *variable]


def _is_constant(node: Any, constant_names: set[str], arrays: dict[str, Array]) -> bool:
    """Returns True if a node reads constants alone, and onnxruntime has its dtype."""
    has_body = any(True for _ in inner_graphs(node))
    if has_body or not constant_names.issuperset(filter(None, node.input)):
        return False
    to_brief = node.op_type == "Cast" and attribute(node, "to") == _BFLOAT16
    return not to_brief and not any(
        str(arrays[name].dtype) == "bfloat16" for name in node.input if name in arrays
    )


def _saved_bytes(nodes: Sequence[Any], arrays: dict[str, Array], read: set[str]) -> int:
    """Returns the bytes of the constants that are not needed once some nodes are computed."""
    sources = {name for node in nodes for name in node.input if name in arrays}
    return sum(arrays[name].nbytes for name in sources - read)


def _compute(
    nodes: Sequence[Any], names: Sequence[str], arrays: dict[str, Array], opset: int
) -> dict[str, Array]:
    onnx, runtime = import_package("onnx"), import_package("onnxruntime")
    feeds = {
        name: arrays[name]
        for name in sorted({name for node in nodes for name in node.input} & arrays.keys())
    }
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = onnx.helper.make_graph(nodes, "constants", inputs, outputs)
    model = make_model(graph, opset)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, feeds), strict=True))


def make_model(graph: Any, opset: int) -> Any:
    """Returns an ONNX model of a graph, in the oldest version of the format that has its opset."""
    onnx = import_package("onnx")
    opsets = [onnx.helper.make_opsetid("", opset)]
    version = max(_OLD_IR_VERSION, onnx.helper.find_min_ir_version_for(opsets))
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version)


def fold_into_convolutions(nodes: Sequence[Any], arrays: dict[str, Array]) -> list[Any]:
    """Moves a factor or summand for each channel of a convolution into its weights, in float32."""
    makers = {name: node for node in nodes for name in node.output}
    uses = Counter(name for node in nodes for name in names_read(node))
    names: dict[str, str] = {}
    remaining = []
    for node in nodes:
        rename([node], names)
        pairs = in_both_orders(node) if node.op_type in ("Mul", "Add") else ()
        constant, source = next((pair for pair in pairs if _is_float(pair[0], arrays)), ("", ""))
        conv = makers.get(source)
        is_one = conv is not None and conv.op_type == "Conv" and uses[source] == 1
        if not is_one or not _fold(node, conv, arrays[constant], arrays):
            remaining.append(node)
            continue
        names[node.output[0]] = source
        uses[source] = uses[node.output[0]]
    rename(remaining, names)  # Bodies come before some of the nodes whose outputs they read.
    return remaining


def _is_float(name: str, arrays: dict[str, Array]) -> bool:
    return name in arrays and arrays[name].dtype == np.float32


def _fold(node: Any, conv: Any, array: Array, arrays: dict[str, Array]) -> bool:
    """Folds the number of each channel into a `Conv`; returns False if it can't be."""
    weights = [arrays.get(name) for name in conv.input[1:]]
    kernel, bias = (*weights, None)[:2]
    if kernel is None or (bias is None and len(weights) > 1) or kernel.dtype != np.float32:
        return False
    rank, channels = kernel.ndim, len(kernel)
    shape = (1,) * (rank - array.ndim) + array.shape
    if array.ndim > rank or shape[1] not in (1, channels) or array.size != shape[1]:
        return False
    numbers = np.broadcast_to(array.reshape(-1), channels)
    if node.op_type == "Mul":
        kernel = kernel * numbers.reshape(-1, *[1] * (rank - 1))
        bias = None if bias is None else bias * numbers
    else:
        bias = numbers if bias is None else bias + numbers
    folded = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    if not all(np.isfinite(values).all() for values in folded.values()):
        return False
    del conv.input[1:]
    for role, values in folded.items():
        conv.input.append(f"{conv.name}/{role}_{len(arrays)}")
        arrays[conv.input[-1]] = np.ascontiguousarray(values)
    return True

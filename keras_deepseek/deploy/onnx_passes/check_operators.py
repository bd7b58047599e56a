"""Names what an exporter has written that ONNX has no operator for."""

from collections.abc import Iterator
from typing import Any

from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.deploy.onnx_passes.inner_graphs import inner_graphs
from keras_deepseek.errors import ExportError


def check_operators(model: Any) -> None:
    """Raises where a graph has operators that its version of ONNX lacks.

    tf2onnx logs what it can't convert, and writes it into the file by TensorFlow's name.

    Args:
        model: `onnx.ModelProto`.

    Raises:
        ExportError: It has. The message names each with the layers that the node's name tells of.
    """
    onnx = import_package("onnx")
    version = next(each.version for each in model.opset_import if not each.domain)
    lacking: dict[str, str] = {}
    for node in _all_nodes(model.graph):
        if not node.domain and not onnx.defs.has(node.op_type, version, ""):
            lacking.setdefault(node.op_type, node.name.rpartition("/")[0])
    if lacking:
        named = (f"{kind} in {place!r}" if place else kind for kind, place in lacking.items())
        raise ExportError(
            f"its exporter has no ONNX for {', '.join(named)} (opset {version} has none)"
        )


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from _all_nodes(inner)

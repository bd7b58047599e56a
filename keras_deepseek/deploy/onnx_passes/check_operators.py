"""A check for operators in a graph that ONNX does not define."""

from typing import Any

from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.deploy.onnx_passes.inner_graphs import all_nodes
from keras_deepseek.errors import ExportError


def check_operators(model: Any) -> None:
    """Raises an `ExportError` that names each operator missing from the graph's opset.

    The message also has their layers. tf2onnx only logs operators that it can't convert, and writes
    them by TensorFlow's name.
    """
    onnx = import_package("onnx")
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    lacking: dict[str, str] = {}
    for node in all_nodes(model.graph):
        if not node.domain and not onnx.defs.has(node.op_type, version, ""):
            lacking.setdefault(node.op_type, node.name.rpartition("/")[0])
    if lacking:
        named = (f"{kind} in {layer!r}" if layer else kind for kind, layer in lacking.items())
        raise ExportError(
            f"its exporter can't write {', '.join(named)} as ONNX (opset {version} has no such "
            "operator)"
        )

"""A check for ONNX nodes that TensorRT does not support."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_deepseek.errors import ExportError


def check_nodes(parser: Any, onnx_file: Path) -> None:
    """Raises an `ExportError` that names each node that TensorRT does not support, and why.

    The network of `parser`, an `OnnxParser` of either flavor, can't be used afterwards.
    """
    if parser.supports_model_v2(onnx_file.read_bytes(), str(onnx_file)):
        return
    raise ExportError(f"TensorRT can't take this model: {describe_errors(parser)}")


def describe_errors(parser: Any) -> str:
    """Returns a message with each error of a TensorRT parser: node name, operator and reason."""
    return "; ".join(dict.fromkeys(_describe(parser))) or "it gives no reason."


def _describe(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # For an unsupported operator, the text is "false", and only the code tells the reason.
        code = error.code().name.lower().replace("_", " ")
        words = " ".join(error.desc().split())
        reason = code if words in ("", "false") else f"{code}: {words}"
        if error.node_operator():
            name = error.node_name() or f"number {error.node()}"
            yield f"node {name} ({error.node_operator()}): {reason}"
        else:
            yield f"the graph: {reason}"

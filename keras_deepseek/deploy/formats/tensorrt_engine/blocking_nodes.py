"""Which nodes of an ONNX file TensorRT can't take, before an engine is built of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_deepseek.errors import ExportError


def check_nodes(parser: Any, onnx_file: Path) -> None:
    """Raises where TensorRT can't take a file, naming every node that it stops at.

    Args:
        parser: An `OnnxParser` of either flavor, of a network that is not needed afterwards.
        onnx_file: The ONNX file.

    Raises:
        ExportError: For each node its name, its operator and the reason.
    """
    if parser.supports_model_v2(onnx_file.read_bytes(), str(onnx_file)):
        return
    raise ExportError(f"TensorRT can't take this model: {describe_errors(parser)}")


def describe_errors(parser: Any) -> str:
    """Returns what a parser stopped at: each node by name and operator, with its reason.

    Args:
        parser: An `OnnxParser` of either flavor.
    """
    return "; ".join(dict.fromkeys(_describe(parser))) or "it gives no reason."


def _describe(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # Of an operator that it has not, the parser says "false", and what that is by a code.
        code = error.code().name.lower().replace("_", " ")
        words = " ".join(error.desc().split())
        reason = code if words in ("", "false") else f"{code}: {words}"
        if error.node_operator():
            name = error.node_name() or f"number {error.node()}"
            yield f"node {name} ({error.node_operator()}): {reason}"
        else:
            yield f"the graph: {reason}"

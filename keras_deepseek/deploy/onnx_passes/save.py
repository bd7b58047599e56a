"""Writes a graph to disk: in one file, or beside it what one file can't hold."""

from pathlib import Path
from typing import Any

from keras_deepseek.deploy.onnx_passes.import_package import import_package

_LARGEST = 2**31 - 2**24
"""Bytes that one file holds: a protocol buffer ends at 2 GiB, and the nodes take some of it."""


def save(model: Any, path: Path) -> None:
    """Writes a graph as `path`, and its weights beside it as `path.data` where they are too large.

    Args:
        model: `onnx.ModelProto`.
        path: Where the file goes.
    """
    onnx = import_package("onnx")
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(
        model,
        path,
        save_as_external_data=size > _LARGEST,
        location=f"{path.name}.data",
        size_threshold=1024,
    )

"""Reading and writing of ONNX files, whose large weights may be in a second file."""

from pathlib import Path
from typing import Any

from keras_deepseek.backend.export.one_file import LARGEST_FILE
from keras_deepseek.deploy.onnx_passes.import_package import import_package

_LEAST_BESIDE = 2**20
"""Bytes. Weights of a large graph stay on disk from this size on."""


def load(path: Path) -> tuple[Any, bool]:
    """Reads an ONNX graph; returns it, and True if its large weights were left on disk.

    They stay in `path.data`, where the exporter wrote them; the graph has only their shapes.
    """
    onnx = import_package("onnx")
    if not _data(path).exists():
        return onnx.load(path), False
    model = onnx.load(path, load_external_data=False)
    import_package("onnx.external_data_helper")
    for tensor in model.graph.initializer:
        external_data = {entry.key: entry.value for entry in tensor.external_data}
        if is_on_disk(tensor) and int(external_data["length"]) < _LEAST_BESIDE:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
    return model, True


def is_on_disk(tensor: Any) -> bool:
    """Returns True if a weight's values are in a second file and not in the graph."""
    return bool(tensor.data_location == import_package("onnx").TensorProto.EXTERNAL)


def save(model: Any, path: Path) -> None:
    """Writes a graph as `path`, and its weights as `path.data` if one file can't hold them.

    Weights that are in `path.data` already stay there.
    """
    onnx = import_package("onnx")
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(
        model,
        path,
        save_as_external_data=size > LARGEST_FILE,
        location=_data(path).name,
        size_threshold=1024,
    )


def _data(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")

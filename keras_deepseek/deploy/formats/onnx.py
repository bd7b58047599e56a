"""ONNX: one file, run by onnxruntime."""

import importlib
from pathlib import Path
from typing import Any

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError
from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec
from keras_deepseek.backend.named_model import NamedModel

_OPSETS = range(13, 19)


class OnnxFormat:
    """Writes ONNX by the exporter of the backend that runs.

    Args:
        opset: integer. The version of ONNX's default operator set, from 13 to 18. Defaults to `18`.

    Raises:
        InvalidInputError: The version is none of these.
    """

    name = "onnx"
    suffix = ".onnx"
    entry = "model.onnx"

    def __init__(self, opset: int = 18) -> None:
        if type(opset) is not int or opset not in _OPSETS:
            raise InvalidInputError(
                f"`opset` must be an integer from {_OPSETS[0]} to {_OPSETS[-1]}; "
                f"received {opset!r}."
            )
        self.opset = opset

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes `model.onnx`, its inputs and outputs named as in the model."""
        onnx = _import("onnx")
        _import("onnxruntime")  # What could not be verified afterwards is not begun.
        path = folder / self.entry
        backend.current().write_onnx(model, str(path), self.opset)
        proto = onnx.load(path)
        _rename(proto.graph, model.signature)
        onnx.checker.check_model(proto)
        onnx.save(proto, path)
        return f"ONNX opset {self.opset}"

    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the file by onnxruntime on the CPU."""
        session = _import("onnxruntime").InferenceSession(
            folder / self.entry, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(None, sample), strict=True)) for sample in samples]


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package, "onnx", "to export and verify ONNX") from error


def _rename(graph: Any, signature: Signature) -> None:
    """Gives the graph's inputs and outputs, which stand in the signature's order, its names."""
    new_names = {}
    for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        for value, spec in zip(values, specs, strict=True):
            new_names[value.name] = spec.name
            _name_free_axes(value, spec)
    _rename_tensors(graph, new_names, taken=set(new_names.values()) - set(new_names))


def _name_free_axes(value: Any, spec: TensorSpec) -> None:
    for axis, (size, dim) in enumerate(
        zip(spec.shape, value.type.tensor_type.shape.dim, strict=False)
    ):
        if size is None:
            dim.dim_param = "batch" if axis == 0 else f"{spec.name}_axis_{axis}"


def _rename_tensors(graph: Any, new_names: dict[str, str], taken: set[str]) -> None:
    """Renames tensors in a graph and the graphs inside it; an inner tensor makes room."""

    def rename(name: str) -> str:
        return new_names.get(name, f"{name}__inner" if name in taken else name)

    for node in graph.node:
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename_tensors(inner, new_names, taken)
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = rename(value.name)

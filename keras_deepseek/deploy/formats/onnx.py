"""The ONNX export format: one file, which onnxruntime runs."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_deepseek import __version__, backend
from keras_deepseek.artifacts.export_arguments import OPSETS, check_opset
from keras_deepseek.artifacts.signature import Batch, InferenceFunction, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.sample_values import layers_by_tensorflow
from keras_deepseek.backend.tensor_values import count_bytes, fits_one_file
from keras_deepseek.checks import check_boolean
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.onnx_passes.attention import add_masks, fuse_attention
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, all_nodes, import_package
from keras_deepseek.deploy.onnx_passes.keep_nan import keep_nan
from keras_deepseek.deploy.onnx_passes.onnx_file import check, check_names, is_beside, rename, save
from keras_deepseek.deploy.onnx_passes.precision import (
    check_bfloat16,
    products_in_float16,
    quantize,
    to_bfloat16,
)
from keras_deepseek.deploy.onnx_passes.roll_normalizations import roll_normalizations
from keras_deepseek.errors import InvalidInputError, NotSupportedError

_COMMON_PACKAGES = {"onnx": "onnx", "onnxruntime": "onnx"}
_LOSING_NAN = {
    *("ArgMax", "ArgMin", "GlobalMaxPool", "GRU", "LSTM", "MaxPool", "ReduceMax", "ReduceMin"),
    "TopK",
}
"""Operators that docs/reference/onnx_files.md lists by what they make of NaN or infinity."""


class OnnxFormat(ExportFormat):
    """The ONNX format: written from the traced program.

    The table of `onnx_writer` writes the file. Where it can't, the exporter of PyTorch or
    TensorFlow writes one, which stays as it is but for names and precision.

    Args:
        opset: From 18 to 25.
        simplified: Whether constants are folded and equal nodes are merged.
        fused: Whether factors move into weights, masks become sums, and, at the opsets 23 and 24,
            attention becomes `Attention`.
        calibration: Batches by input name. If given, products compute in int8, by their ranges.
        products_in_float16: Whether products that an export in float16 leaves in float32 compute in
            float16 as well, as TensorRT requires for GPUs of compute capability 7.5.
        rolled: Whether repeated normalizations, as Sinkhorn's, become a `Loop`, as TensorRT
            requires.
    """

    name = "onnx"
    suffix = ".onnx"
    entry = "model.onnx"
    backends = ("tensorflow", "torch")
    writes_programs = True
    packages = MappingProxyType(
        {
            "program": _COMMON_PACKAGES,
            "tensorflow": _COMMON_PACKAGES | {"tf2onnx": "onnx-fallback"},
            "torch": _COMMON_PACKAGES | {"onnxscript": "onnx-fallback"},
        }
    )

    def __init__(
        self,
        opset: int = 18,
        simplified: bool = True,
        fused: bool = True,
        calibration: Sequence[Batch] | None = None,
        products_in_float16: bool = False,
        rolled: bool = False,
    ) -> None:
        self.opset = check_opset(opset)
        self.simplified = check_boolean("simplified", simplified)
        self.fused = check_boolean("fused", fused)
        self.calibration = calibration
        self.products_in_float16 = check_boolean("products_in_float16", products_in_float16)
        self.rolled = check_boolean("rolled", rolled)

    def check_signature(self, signature: Signature) -> None:
        check_names(signature)

    def check_backend(self, model: NamedModel, name: str) -> None:
        """Raises an error if ONNX lacks a layer's operators, or the weights exceed the file limit.

        The largest file depends on the backend.
        """
        if names := layers_by_tensorflow(model.model):
            raise InvalidInputError(
                f"ONNX has no operators for {', '.join(names)}, whose tables and hashes are "
                "TensorFlow's: remove such layers from the model, or export it as 'savedmodel'."
            )
        if fits_one_file(model.model):
            return
        if name != "program":
            raise NotSupportedError(
                "its exporter writes one file, which holds 2 GB, and the weights have "
                f"{count_bytes(model.model.variables) / 1e9:.1f} GB"
            )
        options = {
            "precision='bfloat16'": model.precision == "bfloat16",
            "precision='int8'": self.calibration is not None,
            "products_in_float16": self.products_in_float16,
        }
        if unsupported := [option for option, is_set in options.items() if is_set]:
            raise NotSupportedError(
                f"{', '.join(unsupported)} is not supported for weights beyond the 2 GB of one file"
            )

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes `model.onnx` by the exporter of the running backend."""
        path = folder / self.entry
        written = self._written_model(model)
        backend.current().export.write_onnx(written, str(path), self.opset)
        proto = import_package("onnx").load(path)
        rename(proto.graph, model.signature)
        return self._finish(proto, model, path)

    def write_program(self, model: NamedModel, batch: Batch, folder: Path) -> str:
        """Writes `model.onnx` from the program of the model, by the table of operations."""
        from keras_deepseek.deploy.onnx_writer import write_program

        proto = write_program(
            self._written_model(model),
            batch,
            self.opset,
            simplified=self.simplified,
            fused=self.fused,
        )
        view = GraphView(proto)
        keep_nan(view)
        if self.fused:
            add_masks(view)
            fuse_attention(view)
        return self._finish(proto, model, folder / self.entry)

    def _written_model(self, model: NamedModel) -> NamedModel:
        """Returns the model in float16 in place of bfloat16, which not every exporter writes.

        `_change_precision` replaces it.
        """
        return model.in_precision("float16") if model.precision == "bfloat16" else model

    def _change_precision(self, proto: Any, model: NamedModel) -> Any:
        if model.precision == "bfloat16":
            to_bfloat16(proto.graph)
            check_bfloat16(proto, OPSETS[-1])
        if self.calibration is not None:
            proto = quantize(proto, self.calibration)
        if self.products_in_float16:
            proto = products_in_float16(proto)
        if self.rolled:
            roll_normalizations(GraphView(proto))
        return proto

    def _finish(self, proto: Any, model: NamedModel, path: Path) -> str:
        """Writes a file in the precision of the model; returns what it is."""
        import_package("onnxruntime")  # Verification needs it.
        proto = self._change_precision(proto, model)
        self._describe(proto, model)
        check(proto)
        save(proto, path)
        beside = ", its weights beside it" if is_beside(path) else ""
        return (
            f"ONNX opset {self.opset}, {len(proto.graph.node)} nodes{beside}{self._describe_rows()}"
        )

    def _describe_rows(self) -> str:
        if self.calibration is None:
            return ""
        num_rows = sum(len(next(iter(batch.values()))) for batch in self.calibration)
        return f", int8 for the ranges of {num_rows} rows of {', '.join(self.calibration[0])}"

    def run(self, folder: Path, samples: list[Batch]) -> list[Batch]:
        """Runs `model.onnx` on the CPU: with onnxruntime, or for bfloat16 with ONNX's evaluator."""
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        runtime = import_package("onnxruntime")
        try:
            session = runtime.InferenceSession(
                folder / self.entry, providers=["CPUExecutionProvider"]
            )
        except runtime.capi.onnxruntime_pybind11_state.NotImplemented as lacking:
            if not _computes_in_bfloat16(folder / self.entry):
                raise
            return _load_reference(folder / self.entry, failure_reason(lacking))
        names = [output.name for output in session.get_outputs()]
        return lambda sample: dict(zip(names, session.run(None, sample), strict=True))

    def operators_losing_nan(self, folder: Path) -> Sequence[str]:
        proto = import_package("onnx").load(folder / self.entry, load_external_data=False)
        return sorted({node.op_type for node in all_nodes(proto.graph)} & _LOSING_NAN)

    def _describe(self, proto: Any, model: NamedModel) -> None:
        """Writes the file's metadata, without times, so that equal exports have equal bytes."""
        precision = "int8" if self.calibration is not None else model.precision
        properties = {
            "inputs": "; ".join(map(str, model.signature.inputs)),
            "name": model.model.name,
            "outputs": "; ".join(map(str, model.signature.outputs)),
            "precision": precision or model.model.compute_dtype,
        }
        proto.producer_name, proto.producer_version = "keras_deepseek", __version__
        proto.graph.name = model.model.name
        proto.doc_string = ""
        del proto.metadata_props[:]
        for key, value in properties.items():
            proto.metadata_props.add(key=key, value=value)


def _computes_in_bfloat16(path: Path) -> bool:
    """Returns True if an ONNX file uses bfloat16, which onnxruntime can't compute on the CPU."""
    onnx = import_package("onnx")
    graph = onnx.load(path, load_external_data=False).graph
    types = {tensor.data_type for tensor in graph.initializer}
    types |= {
        attribute.i for node in graph.node for attribute in node.attribute if attribute.name == "to"
    }
    return onnx.TensorProto.BFLOAT16 in types


def _load_reference(path: Path, lacking: str) -> InferenceFunction:
    """Loads a file into ONNX's own evaluator, which is slow but supports bfloat16."""

    def infer(sample: Batch) -> Batch:
        try:
            evaluator = import_package("onnx.reference").ReferenceEvaluator(str(path))
            outputs = evaluator.run(None, sample)
        except Exception as error:  # Its operators raise whatever NumPy does.
            raise NotSupportedError(
                f"onnxruntime can't run it on a CPU ({lacking}), nor can the reference "
                f"({failure_reason(error)})"
            ) from error
        return dict(zip(evaluator.output_names, outputs, strict=True))

    return infer

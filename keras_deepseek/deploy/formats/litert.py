"""The LiteRT export format: a file for phones and boards, converted from the model's SavedModel."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from keras_deepseek import backend
from keras_deepseek.artifacts.export_arguments import INT8
from keras_deepseek.artifacts.signature import Batch, InferenceFunction, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.runtimes.litert_model import LiteRTModel
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.errors import InvalidInputError, NotSupportedError


class LiteRTFormat(ExportFormat):
    """The LiteRT format: `model.tflite`, with LiteRT's own operations alone, run on the CPU.

    Args:
        calibration: Batches by input name. If given, operations compute in int8, by their ranges,
            wherever LiteRT has them in int8; inputs and outputs keep their dtypes.
    """

    name = "litert"
    suffix = ".tflite"
    entry = "model.tflite"
    backends = ("tensorflow",)
    source = "savedmodel"
    source_options = MappingProxyType({"warmup": False})
    own_precisions = ("float16", INT8)
    distributions = ("ai-edge-litert",)

    def __init__(self, calibration: Sequence[Batch] | None = None) -> None:
        self._calibration = calibration
        if importlib.util.find_spec("ai_edge_litert") is None:
            self.runtime = "tensorflow"

    def check_precision(self, precision: str | None) -> None:
        if precision is not None and precision not in self.own_precisions:
            raise InvalidInputError(
                f"LiteRT has no {precision}. Pass precision='float16', which keeps weights in it, "
                "or precision='int8'."
            )

    def write(self, model: NamedModel, folder: Path) -> str:
        raise NotSupportedError(
            "A LiteRT file is converted from a SavedModel: export through "
            "Exporter(model, 'litert'), which verifies that SavedModel first."
        )

    def build(
        self, source_file: Path, folder: Path, signature: Signature, precision: str | None
    ) -> str:
        """Converts a verified SavedModel by TensorFlow."""
        content = backend.current().export.convert_to_litert(
            source_file, in_float16=precision == "float16", calibration=self._calibration
        )
        (folder / self.entry).write_bytes(content)
        if self._calibration is not None:
            num_rows = sum(len(next(iter(batch.values()))) for batch in self._calibration)
            return f"LiteRT, int8 for the ranges of {num_rows} rows"
        return "LiteRT, weights in float16" if precision == "float16" else "LiteRT"

    def run(self, folder: Path, samples: list[Batch]) -> list[Batch]:
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        return LiteRTModel(folder / self.entry, "to run LiteRT").run

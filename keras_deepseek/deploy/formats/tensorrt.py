"""The TensorRT export format: an engine built from the model's verified ONNX file.

TensorRT-RTX builds an engine without a GPU. Plain TensorRT builds on the GPU that the engine is
for. Both need a GPU to run one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Batch, InferenceFunction, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.runtimes.tensorrt_engine import libraries
from keras_deepseek.backend.runtimes.tensorrt_engine.engine_runner import DTYPES, EngineRunner
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import mark_flavor
from keras_deepseek.deploy.formats.export_format import ExportFormat, Shapes
from keras_deepseek.deploy.formats.tensorrt_engine.build_engine import (
    build_engine,
    resolve_profiles,
)
from keras_deepseek.deploy.formats.tensorrt_engine.flavor import (
    TURING,
    check_capabilities,
    check_turing,
    find_flavor,
)
from keras_deepseek.errors import InvalidInputError, NotSupportedError


class TensorRTFormat(ExportFormat):
    """The TensorRT format: an engine in the precision of its ONNX file; running needs a GPU.

    Args:
        flavor: `"tensorrt"`, `"rtx"`, or `"auto"`: plain TensorRT where it is installed and a GPU
            is visible, else TensorRT-RTX.
        compute_capabilities: The GPUs that a TensorRT-RTX engine is for, as in `("86", "89")`.
            Empty: all from Ampere on.
        profiles: One or several dicts: the smallest, usual and largest size by free axis, as in
            `{"batch": (1, 4, 32)}`, or the three whole shapes by input. Other axes take 1, 4 and 32
            for the batch, and 1, 16 and 64 otherwise.
    """

    name = "tensorrt"
    suffix = ".trt"
    entry = "model.trt"
    source = "onnx"
    distributions = ("tensorrt", "tensorrt-rtx-cu12")

    def __init__(
        self,
        flavor: str = "auto",
        compute_capabilities: Sequence[str | int] = (),
        profiles: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._profiles = profiles
        self.flavor = find_flavor(flavor, wants_capabilities=bool(compute_capabilities))
        self.capabilities: tuple[str, ...] = ()
        if compute_capabilities:
            self.capabilities = check_capabilities(compute_capabilities, self.flavor.module)
        for_turing = {"products_in_float16": True} if TURING in self.capabilities else {}
        self.source_options = {"rolled": True, **for_turing}

    def check_signature(self, signature: Signature) -> None:
        """Rejects dtypes that TensorRT lacks, and profiles that do not fit the model."""
        for spec in (*signature.inputs, *signature.outputs):
            # TensorRT would silently take float64 for float32.
            if spec.dtype not in DTYPES.values():
                raise InvalidInputError(
                    f"TensorRT has no {spec.dtype}, which the model has in {spec}; it has "
                    f"{', '.join(DTYPES.values())}. Cast it in the model."
                )
        resolve_profiles(signature, self._profiles)

    def check_precision(self, precision: str | None) -> None:
        if TURING in self.capabilities:
            check_turing(self.flavor.module, precision)

    def write(self, model: NamedModel, folder: Path) -> str:
        raise NotSupportedError(
            "A TensorRT engine is built from an ONNX file: export through "
            "Exporter(model, 'tensorrt'), which verifies that file first."
        )

    def build(
        self, source_file: Path, folder: Path, signature: Signature, precision: str | None
    ) -> str:
        """Builds the engine from a verified ONNX file.

        Returns the library, the GPUs and the sizes.
        """
        profiles = resolve_profiles(signature, self._profiles)
        engine = build_engine(self.flavor.module, source_file, profiles, self.capabilities)
        (folder / self.entry).write_bytes(engine)
        gpus = ", ".join(f"SM{capability}" for capability in self.capabilities)
        if not gpus:
            gpus = "this GPU" if self.flavor.name == "tensorrt" else "Ampere and newer"
        sizes = " and ".join(map(str, profiles))
        mark = mark_flavor(self.flavor.name)
        return f"{self.flavor.release} {mark} for {gpus}, profile {sizes}"

    def sample_shapes(self, signature: Signature) -> list[Shapes]:
        """Returns the smallest, usual and largest input shapes of each profile, each shape once."""
        distinct_shapes: list[Shapes] = []
        for profile in resolve_profiles(signature, self._profiles):
            names, ranges = profile.shapes.keys(), profile.shapes.values()
            for bound in zip(*ranges, strict=True):
                shapes = dict(zip(names, bound, strict=True))
                if shapes not in distinct_shapes:
                    distinct_shapes.append(shapes)
        return distinct_shapes

    def takes(self, signature: Signature, shapes: Shapes) -> bool:
        profiles = resolve_profiles(signature, self._profiles)
        return any(profile.takes(shapes) for profile in profiles)

    def check_runnable(self) -> None:
        if not libraries.count_gpus():
            raise NotSupportedError("a TensorRT engine runs on a GPU, and none is visible here")

    def run(self, folder: Path, samples: list[Batch]) -> list[Batch]:
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        self.check_runnable()
        return EngineRunner(self.flavor.module, (folder / self.entry).read_bytes()).run

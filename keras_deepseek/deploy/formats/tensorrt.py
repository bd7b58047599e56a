"""TensorRT: an engine built from the verified ONNX of the same model.

TensorRT-RTX needs no GPU to build one, plain TensorRT builds on the GPU that the engine is for, and
both need one to run it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Array, InferenceFunction, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.runtimes.tensorrt_engine import visible_gpus
from keras_deepseek.backend.runtimes.tensorrt_engine.engine_runner import DTYPES, EngineRunner
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import mark_flavor
from keras_deepseek.deploy.formats.tensorrt_engine.build_engine import build_engine
from keras_deepseek.deploy.formats.tensorrt_engine.capabilities import TURING, check_capabilities
from keras_deepseek.deploy.formats.tensorrt_engine.flavor import find_flavor
from keras_deepseek.deploy.formats.tensorrt_engine.profiles import resolve_profiles
from keras_deepseek.errors import InvalidInputError, NotSupportedError


class TensorRTFormat:
    """Builds a TensorRT engine in the ONNX file's own precision, and runs it where a GPU is.

    Args:
        signature: The model's signature.
        precision: string. What the export was asked to compute in; `None` for the model's own.
        flavor: string. `"tensorrt"`, `"rtx"`, or `"auto"`: plain TensorRT where it is installed and
            a GPU is visible, else TensorRT-RTX. Defaults to `"auto"`.
        compute_capabilities: sequence of strings. The GPUs that a TensorRT-RTX engine is for, as in
            `("86", "89")`. Defaults to `()`: all from Ampere on.
        profiles: dict, or a sequence of dicts for several profiles: the smallest, usual and largest
            size by free axis, as in `{"batch": (1, 4, 32)}`, or the three whole shapes by input.
            Defaults to `None`: 1, 4 and 32 for the batch, and 1, 16 and 64 for any other.

    Raises:
        InvalidInputError: An argument is unknown or does not fit the model.
        MissingExtraError: The library is not installed.
        NotSupportedError: Plain TensorRT is asked for where no GPU is visible.
    """

    name = "tensorrt"
    suffix = ".trt"
    entry = "model.trt"

    def __init__(
        self,
        signature: Signature,
        precision: str | None,
        flavor: str = "auto",
        compute_capabilities: Sequence[str | int] = (),
        profiles: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        _check_dtypes(signature)
        self.profiles = resolve_profiles(signature, profiles)
        self.flavor = find_flavor(flavor, wants_capabilities=bool(compute_capabilities))
        self.capabilities: tuple[str, ...] = ()
        if compute_capabilities:
            self.capabilities = check_capabilities(
                compute_capabilities, self.flavor.module, precision
            )

    @property
    def onnx_options(self) -> dict[str, Any]:
        """What the ONNX file has to be made with for an engine, and for these GPUs."""
        of_turing = {"products_in_float16": True} if TURING in self.capabilities else {}
        return {"rolled": True, **of_turing}

    def write(self, model: NamedModel, folder: Path) -> str:
        """Refuses: no backend writes an engine, which `build` makes of a verified ONNX file.

        Raises:
            NotSupportedError: Always.
        """
        raise NotSupportedError(
            "A TensorRT engine is built from an ONNX file: export through "
            "Exporter(model, 'tensorrt'), which verifies that file first."
        )

    def build(self, onnx_file: Path, folder: Path) -> str:
        """Builds the engine.

        Args:
            onnx_file: A verified ONNX file of the model.
            folder: Where `model.trt` goes.

        Returns:
            How it was made: the library, and what GPUs and sizes the engine is for.

        Raises:
            ExportError: TensorRT can't take the model; the message names the nodes.
        """
        engine = build_engine(self.flavor.module, onnx_file, self.profiles, self.capabilities)
        (folder / self.entry).write_bytes(engine)
        gpus = ", ".join(f"SM{capability}" for capability in self.capabilities)
        if not gpus:
            gpus = "this GPU" if self.flavor.name == "tensorrt" else "Ampere and newer"
        sizes = " and ".join(map(str, self.profiles))
        mark = mark_flavor(self.flavor.name)
        return f"{self.flavor.release} {mark} for {gpus}, profile {sizes}"

    def check_can_run(self) -> None:
        """Raises where no engine can be run.

        Raises:
            NotSupportedError: No GPU is visible.
        """
        if not visible_gpus.count_gpus():
            raise NotSupportedError("a TensorRT engine runs on a GPU, and none is visible here")

    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the engine on the GPU.

        Args:
            folder: Where `model.trt` stands.
            samples: For each batch its arrays by input name.

        Returns:
            For each batch the arrays by output name.

        Raises:
            NotSupportedError: It can't be run on this machine.
            ExportError: The GPU failed to run it.
        """
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        """Returns the engine as a function of arrays by name, or raises `NotSupportedError`."""
        self.check_can_run()
        return EngineRunner(self.flavor.module, (folder / self.entry).read_bytes()).run


def _check_dtypes(signature: Signature) -> None:
    """Refuses what TensorRT would take for something else, as float64 for float32."""
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype not in DTYPES.values():
            raise InvalidInputError(
                f"TensorRT has no {spec.dtype}, which the model has in {spec}; it has "
                f"{', '.join(DTYPES.values())}. Cast it in the model."
            )

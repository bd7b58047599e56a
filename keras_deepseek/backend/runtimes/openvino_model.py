"""Runs OpenVINO models without Keras: `deploy` verifies with it, `inference` serves with it."""

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, MissingExtraError


class OpenVINOModel:
    """An OpenVINO model on the CPU, from an `.xml` file that stands beside its `.bin`.

    It computes in the precision of the model: OpenVINO itself might choose another one on a CPU.
    One thread at a time may call it. It computes with `threads` threads, or as many as OpenVINO
    chooses.
    """

    def __init__(self, path: Path, purpose: str, threads: int | None = None) -> None:
        core = shared_core(import_openvino(purpose))
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "INFERENCE_NUM_THREADS": threads or 0,
        }
        try:
            model = core.read_model(path)
            # Read before compiling, which may add names of inner tensors to an output.
            self.input_names = [tensor.get_any_name() for tensor in model.inputs]
            self.output_names = [tensor.get_any_name() for tensor in model.outputs]
            self._compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            words = " ".join(str(error).split())
            raise InvalidInputError(
                f"OpenVINO can't load {str(path)!r}: {words} Export it again."
            ) from error

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Runs the OpenVINO model on a batch; returns arrays by output name."""
        outputs = self._compiled(inputs)
        return {name: outputs[index].copy() for index, name in enumerate(self.output_names)}


def import_openvino(purpose: str) -> Any:
    """Imports OpenVINO without its telemetry, which forks this process to report the import.

    JAX's threads don't survive a fork. `purpose` is, for example, "to export OpenVINO".
    """
    telemetry = "openvino_telemetry"
    loaded = sys.modules.get(telemetry)
    sys.modules[telemetry] = None  # type: ignore[assignment]  # `import` then fails
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", purpose) from error
    finally:
        del sys.modules[telemetry]
        if loaded is not None:
            sys.modules[telemetry] = loaded


@functools.cache
def shared_core(openvino: Any) -> Any:
    """Returns the process's single `openvino.Core`, which is never freed.

    Each `Core` that has used the CPU installs a stack for signal handlers, and restores the one
    from before at its end. If the older of two ends first, that is freed memory: the next signal,
    such as SIGTERM, ends the process by SIGSEGV (OpenVINO 2026.4).
    """
    return openvino.Core()

"""The checks, in the order in which they run. It loads no framework."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One check of a backend on a device.

    Args:
        module: string. The module of `gpu_tests` that has it.
        function: string. A function from a `Place` to the figures for the report. It raises
            `Skipped` where it can't run, and any other exception where it fails.
        seconds: integer. A check that takes longer is ended, and has failed.
    """

    module: str
    function: str
    seconds: int = 90

    def load(self) -> Callable[[Any], str]:
        """Returns the function, from a process of the backend."""
        function: Callable[[Any], str] = getattr(
            importlib.import_module(f"gpu_tests.{self.module}"), self.function
        )
        return function


CHECKS = {
    # First: the allocator's peak is that of the process.
    "measure_memory": Check("training_checks", "check_memory"),
    "float16": Check("training_checks", "check_float16"),
    "fused update": Check("training_checks", "check_update"),
    "device_map": Check("training_checks", "check_device_map"),
    "two devices": Check("training_checks", "check_two_devices"),
    "layers": Check("layer_checks", "check_layers", seconds=240),
    "half precision": Check("layer_checks", "check_half_precision"),
    "decoding": Check("layer_checks", "check_decoding"),
    "ONNX by CUDA": Check("export_checks", "check_onnx"),
    "TensorRT": Check("export_checks", "check_tensorrt", seconds=180),
    "TensorRT-RTX": Check("export_checks", "check_tensorrt_rtx", seconds=180),
    "two processes": Check("process_checks", "check_two_processes"),
}

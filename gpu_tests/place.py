"""The device that the checks run on, and what a framework alone knows about it.

Frameworks are imported inside the functions: one process has one of them.
"""

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


class Skipped(Exception):  # noqa: N818 - it is no error
    """A check can't run here. Its message says why."""


@dataclass(frozen=True)
class Place:
    """A device to check.

    Args:
        kind: string. `"gpu"`, or `"cpu"` for a dry run.
        count: integer. How many devices of the kind there are.
        has_fault: boolean. Whether `measured` changes what it is given, so that checks fail.
    """

    kind: str
    count: int
    has_fault: bool = False

    @property
    def is_gpu(self) -> bool:
        """Whether this is no dry run."""
        return self.kind == "gpu"

    @property
    def device(self) -> str:
        """The first device, as in `"gpu:0"`."""
        return f"{self.kind}:0"

    def measured(self, value: Any) -> Any:
        """Returns what a check measured on the device, as an array; changed by a planted fault."""
        array = np.asarray(value)
        return array * 5 + 1 if self.has_fault else array


def visible_devices(kind: str) -> tuple[int, str]:
    """Returns how many devices of a kind the framework sees, and what it sees in all, in words."""
    from keras_deepseek import backend
    from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import count_gpus

    counts = {
        device_kind: backend.current().devices.count_devices(device_kind)
        for device_kind in ("cpu", "gpu", "tpu")
    }
    present = ", ".join(device_kind for device_kind, count in counts.items() if count)
    return counts[kind], (
        f"it sees {present} only, is built {_built_with()}, "
        f"and CUDA's driver has {count_gpus()} GPUs"
    )


def _built_with() -> str:
    import keras

    match keras.backend.backend():
        case "torch":
            import torch

            cuda = torch.version.cuda
        case "tensorflow":
            import tensorflow as tf

            cuda = tf.sysconfig.get_build_info().get("cuda_version")
        case _:  # JAX's CUDA is a package beside it.
            releases = [
                release for release in ("cuda12", "cuda13") if _release(f"jax-{release}-plugin")
            ]
            cuda = ", ".join(release.removeprefix("cuda") for release in releases)
    return f"for CUDA {cuda}" if cuda else "without CUDA"


def _release(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def describe(target: Place) -> dict[str, str]:
    """Returns what the report says about this process: releases, and the device's name."""
    import keras

    from keras_deepseek import backend

    name = keras.backend.backend()
    return {
        "framework": f"{name} {_release(name)}, {_built_with()}",
        "device": f"{target.count} x {backend.current().devices.read_device_name() or 'CPU'}",
        "keras": keras.__version__,
    }


def prepare_cpu() -> None:
    """Gives TensorFlow two CPUs for a dry run; JAX has them by `XLA_FLAGS`."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Computes products in all of float32's digits: TensorFloat-32 keeps three of them."""
    import keras

    match keras.backend.backend():
        case "jax":
            import jax

            with jax.default_matmul_precision("highest"):
                yield
        case "tensorflow":
            import tensorflow as tf

            was_enabled = tf.config.experimental.tensor_float_32_execution_enabled()
            tf.config.experimental.enable_tensor_float_32_execution(False)
            try:
                yield
            finally:
                tf.config.experimental.enable_tensor_float_32_execution(was_enabled)
        case _:
            import torch

            was_allowed = torch.backends.cudnn.allow_tf32  # Of products it is off already.
            torch.backends.cudnn.allow_tf32 = False
            try:
                yield
            finally:
                torch.backends.cudnn.allow_tf32 = was_allowed


def is_on(tensor: Any, kind: str) -> bool:
    """Returns whether a tensor or variable lies on a device of a kind."""
    name = str(getattr(tensor, "value", tensor).device).lower()
    return ("cuda" in name or "gpu" in name) == (kind == "gpu")

"""The two NVIDIA libraries that build engines: TensorRT and TensorRT-RTX.

Plain TensorRT builds on the GPU that the engine is for. TensorRT-RTX builds for the GPUs of given
compute capabilities, on a machine that needs none.
"""

import importlib.util
from dataclasses import dataclass
from typing import Any

from keras_deepseek.backend.runtimes.tensorrt_engine import visible_gpus
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import (
    MODULES,
    TITLES,
    import_library,
)
from keras_deepseek.errors import (
    InvalidInputError,
    NotSupportedError,
    unknown_name_message,
)

FLAVORS = ("auto", "tensorrt", "rtx")

_PURPOSES = {
    "tensorrt": "to build an engine of plain TensorRT (NVIDIA's own index has it: add "
    "--extra-index-url https://pypi.nvidia.com)",
    "rtx": "to build an engine of TensorRT-RTX",
}


@dataclass(frozen=True)
class Flavor:
    """A TensorRT library: its flavor, `"tensorrt"` or `"rtx"`, and its Python module.

    Both have the same API.
    """

    name: str
    module: Any

    @property
    def release(self) -> str:
        """The library's name and version, for reports."""
        return f"{TITLES[self.name]} {self.module.__version__}"


def check_flavor(name: str) -> None:
    """Rejects an unknown flavor of TensorRT."""
    if name not in FLAVORS:
        raise InvalidInputError(unknown_name_message("flavor", name, FLAVORS))


def find_flavor(name: str, *, wants_capabilities: bool) -> Flavor:
    """Imports the requested library; for `"auto"`, plain TensorRT if it can build here, else RTX.

    Only TensorRT-RTX can build for given compute capabilities.
    """
    check_flavor(name)
    if name == "auto":
        return _import_flavor(_choose(wants_capabilities=wants_capabilities))
    if name == "tensorrt" and wants_capabilities:
        raise InvalidInputError(
            "Plain TensorRT builds only for the GPU that it runs on, and takes no "
            "compute_capabilities=. Leave them out, or pass flavor='rtx'."
        )
    flavor = _import_flavor(name)
    if name == "tensorrt" and not visible_gpus.count_gpus():
        raise NotSupportedError(
            "Plain TensorRT builds an engine on the GPU that the engine is for, and no GPU is "
            "visible here. Export on a machine with a GPU, or pass flavor='rtx', which needs none."
        )
    return flavor


def _choose(*, wants_capabilities: bool) -> str:
    is_plain_installed = importlib.util.find_spec(MODULES["tensorrt"]) is not None
    can_build = is_plain_installed and not wants_capabilities and visible_gpus.count_gpus() > 0
    return "tensorrt" if can_build else "rtx"


def _import_flavor(name: str) -> Flavor:
    return Flavor(name, import_library(name, _PURPOSES[name]))

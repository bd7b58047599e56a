"""Which of NVIDIA's two libraries builds an engine.

Plain TensorRT builds on the GPU that the engine is for. TensorRT-RTX builds for the GPUs of given
compute capabilities, on a machine that has none.
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
    """A library that builds engines.

    Args:
        name: string. `"tensorrt"` or `"rtx"`.
        module: The imported module. The two have one API.
    """

    name: str
    module: Any

    @property
    def release(self) -> str:
        """What the report calls it."""
        return f"{TITLES[self.name]} {self.module.__version__}"


def check_flavor(name: str) -> None:
    """Says that a flavor is unknown.

    Args:
        name: string.

    Raises:
        InvalidInputError: It is.
    """
    if name not in FLAVORS:
        raise InvalidInputError(unknown_name_message("flavor", name, FLAVORS))


def find_flavor(name: str, *, wants_capabilities: bool) -> Flavor:
    """Returns the library that is asked for, or the one that there is.

    Args:
        name: string. `"tensorrt"`, `"rtx"`, or `"auto"`: plain TensorRT where it is installed and a
            GPU is visible, else TensorRT-RTX.
        wants_capabilities: boolean. Whether compute capabilities are asked for, which TensorRT-RTX
            alone can build for.

    Raises:
        InvalidInputError: The name is unknown, or plain TensorRT is asked for capabilities.
        MissingExtraError: The library is not installed.
        NotSupportedError: Plain TensorRT is asked for where no GPU is visible.
    """
    check_flavor(name)
    if name == "auto":
        return _import_flavor(_choose(wants_capabilities=wants_capabilities))
    if name == "tensorrt" and wants_capabilities:
        raise InvalidInputError(
            "Plain TensorRT builds for the GPU that it runs on and takes no compute_capabilities=. "
            "Leave them out, or pass flavor='rtx'."
        )
    flavor = _import_flavor(name)
    if name == "tensorrt" and not visible_gpus.count_gpus():
        raise NotSupportedError(
            "Plain TensorRT builds an engine on the GPU that it is for, and none is visible here. "
            "Export on a machine that has one, or pass flavor='rtx', which needs none."
        )
    return flavor


def _choose(*, wants_capabilities: bool) -> str:
    is_plain_installed = importlib.util.find_spec(MODULES["tensorrt"]) is not None
    can_build = is_plain_installed and not wants_capabilities and visible_gpus.count_gpus() > 0
    return "tensorrt" if can_build else "rtx"


def _import_flavor(name: str) -> Flavor:
    return Flavor(name, import_library(name, _PURPOSES[name]))

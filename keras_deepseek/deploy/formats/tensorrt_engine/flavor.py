"""The NVIDIA library that builds an engine, and the GPUs that the engine is for.

Plain TensorRT builds on the GPU that the engine is for. TensorRT-RTX builds for the GPUs of given
compute capabilities, on a machine that needs none.
"""

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keras_deepseek.backend.runtimes.tensorrt_engine import libraries
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import (
    MODULES,
    TITLES,
    import_library,
)
from keras_deepseek.errors import InvalidInputError, NotSupportedError, unknown_name_message

_FLAVORS = ("auto", "tensorrt", "rtx")

_PURPOSES = {
    "tensorrt": "to build an engine of plain TensorRT (NVIDIA's own index has it: add "
    "--extra-index-url https://pypi.nvidia.com)",
    "rtx": "to build an engine of TensorRT-RTX",
}

TURING = "75"
"""The oldest compute capability. An engine for it runs on no other, and computes in float16."""


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


def find_flavor(name: str, *, wants_capabilities: bool) -> Flavor:
    """Imports the requested library; for `"auto"`, plain TensorRT if it can build here, else RTX.

    Only TensorRT-RTX can build for given compute capabilities.
    """
    if name not in _FLAVORS:
        raise InvalidInputError(unknown_name_message("flavor", name, _FLAVORS))
    if name == "auto":
        return _import_flavor(_choose(wants_capabilities=wants_capabilities))
    if name == "tensorrt" and wants_capabilities:
        raise InvalidInputError(
            "Plain TensorRT builds only for the GPU that it runs on, and takes no "
            "compute_capabilities=. Leave them out, or pass flavor='rtx'."
        )
    flavor = _import_flavor(name)
    if name == "tensorrt" and not libraries.count_gpus():
        raise NotSupportedError(
            "Plain TensorRT builds an engine on the GPU that the engine is for, and no GPU is "
            "visible here. Export on a machine with a GPU, or pass flavor='rtx', which needs none."
        )
    return flavor


def _choose(*, wants_capabilities: bool) -> str:
    is_plain_installed = importlib.util.find_spec(MODULES["tensorrt"]) is not None
    can_build = is_plain_installed and not wants_capabilities and libraries.count_gpus() > 0
    return "tensorrt" if can_build else "rtx"


def _import_flavor(name: str) -> Flavor:
    return Flavor(name, import_library(name, _PURPOSES[name]))


def check_capabilities(capabilities: Iterable[str | int], tensorrt: Any) -> tuple[str, ...]:
    """Converts compute capabilities, such as `("86", "8.9", "SM120", 120)`, to digits, each once.

    Raises an `InvalidInputError` if this release of TensorRT-RTX can't build for one of them, or
    not for all at once.
    """
    if isinstance(capabilities, str | int):
        raise InvalidInputError(
            "`compute_capabilities` must be a sequence, as in ('86', '89'); "
            f"received {capabilities!r}."
        )
    supported = known_capabilities(tensorrt)
    chosen = []
    for capability in capabilities:
        digits = re.sub(r"^SM_?|\.", "", str(capability).upper())
        if digits not in supported:
            raise InvalidInputError(
                f"TensorRT-RTX {tensorrt.__version__} can't build for compute capability "
                f"{capability!r}; it can for {', '.join(supported)}."
            )
        if digits not in chosen:
            chosen.append(digits)
    if TURING in chosen and len(chosen) > 1:
        raise InvalidInputError(
            f"An engine for compute capability {TURING} runs on no other; received "
            f"{', '.join(chosen)}. Export one engine for {TURING}, and another one for any of "
            f"{_other_capabilities(supported)}."
        )
    return tuple(chosen)


def known_capabilities(tensorrt: Any) -> list[str]:
    """Returns the compute capabilities that a release of TensorRT-RTX builds for, oldest first."""
    matches = (re.fullmatch(r"SM(\d+)", name) for name in vars(tensorrt.ComputeCapability))
    return sorted((match[1] for match in matches if match), key=int)


def check_turing(tensorrt: Any, precision: str | None) -> None:
    """Rejects any precision but float16 for an engine for Turing GPUs."""
    if precision != "float16":
        raise InvalidInputError(
            f"An engine for compute capability {TURING} computes only in float16; received "
            f"precision={precision!r}. Pass precision='float16', or compute_capabilities= of "
            f"{_other_capabilities(known_capabilities(tensorrt))}."
        )


def _other_capabilities(capabilities: list[str]) -> str:
    return ", ".join(capability for capability in capabilities if capability != TURING)

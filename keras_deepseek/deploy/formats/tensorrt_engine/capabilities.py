"""Checks of the GPUs that an engine is built for, as NVIDIA compute capabilities."""

import re
from collections.abc import Iterable
from typing import Any

from keras_deepseek.errors import InvalidInputError

TURING = "75"
"""The oldest compute capability. An engine for it runs on no other, and computes in float16."""


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

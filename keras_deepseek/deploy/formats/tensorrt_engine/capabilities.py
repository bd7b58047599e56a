"""For which GPUs an engine is built, by the compute capabilities that NVIDIA numbers them with."""

import re
from collections.abc import Iterable
from typing import Any

from keras_deepseek.errors import InvalidInputError

TURING = "75"
"""The oldest: an engine for it serves no other, and computes in float16."""


def check_capabilities(
    capabilities: Iterable[str | int], tensorrt: Any, precision: str | None
) -> tuple[str, ...]:
    """Returns the compute capabilities as digits, once each, or says which can't be had.

    Args:
        capabilities: As in `("86", "8.9", "SM120", 120)`.
        tensorrt: The module of TensorRT-RTX.
        precision: string. What the export was asked to compute in; `None` for the model's own.

    Raises:
        InvalidInputError: One of them is none that this release can build for, or several can't be
            built for at once, or the precision is none of Turing's.
    """
    if isinstance(capabilities, str | int):
        raise InvalidInputError(
            "`compute_capabilities` must be a sequence, as in ('86', '89'); "
            f"received {capabilities!r}."
        )
    known = known_capabilities(tensorrt)
    chosen = []
    for capability in capabilities:
        digits = re.sub(r"^SM_?|\.", "", str(capability).upper())
        if digits not in known:
            raise InvalidInputError(
                f"TensorRT-RTX {tensorrt.__version__} can't build for compute capability "
                f"{capability!r}; it can for {', '.join(known)}."
            )
        if digits not in chosen:
            chosen.append(digits)
    if TURING in chosen:
        _check_turing(chosen, known, precision)
    return tuple(chosen)


def known_capabilities(tensorrt: Any) -> list[str]:
    """Returns the compute capabilities that a release of TensorRT-RTX builds for, oldest first."""
    found = (re.fullmatch(r"SM(\d+)", name) for name in vars(tensorrt.ComputeCapability))
    return sorted((match[1] for match in found if match), key=int)


def _check_turing(chosen: list[str], known: list[str], precision: str | None) -> None:
    others = [capability for capability in known if capability != TURING]
    if len(chosen) > 1:
        raise InvalidInputError(
            f"An engine for compute capability {TURING} is for that alone; received "
            f"{', '.join(chosen)}. Export one for {TURING}, and another for any of "
            f"{', '.join(others)}."
        )
    if precision != "float16":
        raise InvalidInputError(
            f"An engine for compute capability {TURING} computes in float16 alone; received "
            f"precision={precision!r}. Pass precision='float16', or compute_capabilities= of "
            f"{', '.join(others)}."
        )

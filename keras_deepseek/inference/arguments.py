"""Checks of the engine's arguments, before anything is loaded or started."""

import math
import os
import re
from collections.abc import Iterable

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import (
    InvalidInputError,
    NotSupportedError,
    unknown_name_message,
)
from keras_deepseek.inference.request_options import RequestOptions

_REQUEST_OPTIONS = frozenset(RequestOptions.__annotations__)


def check_name(name: str) -> None:
    """Raises an error for a model name that can't be a part of a URL."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name, flags=re.ASCII):
        raise InvalidInputError(
            f"Received name={name!r}. It becomes a part of the URL: expected letters, digits, `_`, "
            "`-` and `.` only."
        )


def check_count(argument: str, value: int) -> None:
    """Raises an error if a value is not an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(
            f"Received {argument}={value!r}. Expected an integer of at least 1."
        )


def check_version(version: int, model: object) -> None:
    """Raises an error if a model version is not an integer of at least 1.

    `model` is the model or its path.
    """
    if version == 0 and isinstance(model, str | os.PathLike):
        raise InvalidInputError(
            f"Received version 0, of {os.fspath(model)!r}. Versions start at 1: clients use 0 for "
            "the newest. Rename the folder, or give another version."
        )
    check_count("version", version)


def check_cache_entries(value: int) -> None:
    """Raises an error if a number of cache entries is not an integer of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInputError(
            f"Received cache_entries={value!r}. Expected an integer of at least 0."
        )


def check_seconds(argument: str, value: float | None) -> None:
    """Raises an error if a time in seconds is neither `None` nor a number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):
        raise InvalidInputError(f"Received {argument}={value!r}. Expected seconds, above 0.")


def check_wait(argument: str, value: float) -> None:
    """Raises an error if a waiting time is not a number of at least 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value < math.inf):
        raise InvalidInputError(f"Received {argument}={value!r}. Expected seconds, 0 or above.")


def check_option_names(names: Iterable[str]) -> None:
    """Raises an error for keyword names that are not options of `RequestOptions`."""
    for name in names:
        if name not in _REQUEST_OPTIONS:
            raise InvalidInputError(
                unknown_name_message("option of a request", name, _REQUEST_OPTIONS)
            )


def check_request_options(timeout: float | None, priority: int) -> None:
    """Raises an error if a timeout is not a time, or a priority is not an integer."""
    check_seconds("timeout", timeout)
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise InvalidInputError(f"Received priority={priority!r}. Expected an integer.")


def check_address(host: str, port: int) -> None:
    """Raises an error if a host is not a name or address, or a port is out of range."""
    if not isinstance(host, str) or not host:
        raise InvalidInputError(f"Received host={host!r}. Expected a name or an address.")
    if not isinstance(port, int) or isinstance(port, bool) or port not in range(2**16):
        raise InvalidInputError(f"Received port {port!r}. Expected an integer from 0 to 65535.")


def check_batch_size(batch_size: int | str, max_batch_size: int) -> None:
    """Raises an error unless a batch size is `"dynamic"` or from 1 to `max_batch_size`."""
    if batch_size == "dynamic":
        return
    if isinstance(batch_size, str):
        message = unknown_name_message("batch_size", batch_size, ["dynamic"])
        raise InvalidInputError(f"{message} An integer makes it fixed.")
    check_count("batch_size", batch_size)
    if batch_size > max_batch_size:
        raise InvalidInputError(
            f"Received batch_size={batch_size}, which is above max_batch_size={max_batch_size}. "
            "Lower the one or raise the other."
        )


def check_batch_axis(signature: Signature) -> None:
    """Raises an error for a model whose inputs have a fixed batch size."""
    for spec in signature.inputs:
        if not spec.shape or spec.shape[0] is not None:
            raise NotSupportedError(
                f"The first axis of input {spec} is no free batch axis, so requests can't share a "
                "batch. Serve a model whose inputs leave the batch size open."
            )

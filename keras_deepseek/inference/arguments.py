"""Options of a request, and checks of arguments before anything is loaded or started.

It loads no NumPy (`options`).
"""

import math
import numbers
import os
import re
from collections.abc import Collection, Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypedDict

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, NotSupportedError, unknown_name_message

if TYPE_CHECKING:
    from keras_deepseek.artifacts.signature import Signature

_ORIGIN = re.compile(
    r"(?!http://[^/]*:80$|https://[^/]*:443$)"
    r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[1-9][0-9]{0,4})?"
)


class RequestOptions(TypedDict, total=False):
    """Options of `ServingEngine.predict`, `predict_async`, `submit` and `submit_async`.

    Args:
        model: The model's name. `None`: the engine's own.
        version: `None`: the newest, or one on trial.
        label: A label instead of a version.
        timeout: Seconds after which the answer is useless. A late request is not run, and a request
            that would be late is refused.
        priority: Requests of the same model with a higher priority run first.
        client: Requests with the same value are answered in their order. `None`: each is answered
            as soon as it is computed.
    """

    model: str | None
    version: int | None
    label: str
    timeout: float | None
    priority: int
    client: Hashable


def check_name(name: str) -> None:
    """Raises an error for a model name that can't be a part of a URL."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name, flags=re.ASCII):
        raise InvalidInputError(
            "`name` becomes a part of the URL. It must have only letters, digits, `_`, `-` and "
            f"`.`; received {name!r}."
        )


def check_version(version: int, model: object) -> int:
    """Returns a model version, or raises an error if it is not an integer of at least 1.

    `model` is the model or its path.
    """
    if version == 0 and isinstance(model, str | os.PathLike):
        raise InvalidInputError(
            f"Received version 0 for {os.fspath(model)!r}. Versions start at 1, because clients "
            "use 0 for the newest. Rename the folder, or give another version."
        )
    return check_integer("version", version)


def check_seconds(name: str, value: float, *, or_zero: bool = False) -> None:
    """Raises an error if a time is not a finite number of seconds above 0.

    `or_zero` allows 0, too.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf or (value == 0 and not or_zero):
        expected = "0 or more" if or_zero else "above 0"
        raise InvalidInputError(
            f"`{name}` must be a number of seconds, {expected}; received {value!r}."
        )


def check_option_names(names: Iterable[str]) -> None:
    """Raises an error for names that `RequestOptions` does not have."""
    accepted_names = RequestOptions.__annotations__
    for name in names:
        if name not in accepted_names:
            raise InvalidInputError(
                unknown_name_message("option of a request", name, accepted_names)
            )


def check_request_options(timeout: float | None, priority: int) -> None:
    """Raises an error if a timeout is not a time, or a priority is not an integer."""
    if timeout is not None:
        check_seconds("timeout", timeout)
    if not isinstance(priority, numbers.Integral) or isinstance(priority, bool):
        raise InvalidInputError(f"`priority` must be an integer, received {priority!r}.")


def check_host(name: str, host: str) -> None:
    """Raises an error if a host is not a name or an IP address."""
    if not isinstance(host, str) or not host:
        raise InvalidInputError(
            f"`{name}` must be a host name or an IP address, received {host!r}."
        )


def check_origins(name: str, origins: Any) -> tuple[str, ...]:
    """Returns the origins of pages, or raises an error if one is not as browsers send it."""
    if isinstance(origins, str) or not isinstance(origins, Collection):
        raise InvalidInputError(
            f"`{name}` must be a list of origins, as in ['https://app.example.com']; received "
            f"{origins!r}."
        )
    for origin in origins:
        if origin == "*":
            raise InvalidInputError(
                f"`{name}`: received '*', by which any page that a user opens could call the "
                "models. Name each origin, as in 'https://app.example.com'."
            )
        if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
            raise InvalidInputError(
                f"`{name}`: received {origin!r}; expected scheme://host or scheme://host:port as "
                "browsers send it: in lower case, without a path, a final slash, or the port 80 of "
                "http or 443 of https. 'https://app.example.com' is one."
            )
    return tuple(origins)


def check_port(name: str, port: int) -> None:
    """Raises an error if a port is out of range. `0` takes a free one."""
    if not isinstance(port, numbers.Integral) or isinstance(port, bool) or not 0 <= port < 2**16:
        raise InvalidInputError(
            f"`{name}` must be a port, an integer from 0 to 65535, received {port!r}."
        )


def check_batch_size(batch_size: int | str, max_batch_size: int) -> int | str:
    """Returns a batch size, or raises an error unless it is `"dynamic"` or up to the largest."""
    if batch_size == "dynamic":
        return batch_size
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Integral):
        raise InvalidInputError(
            f'`batch_size` must be "dynamic" or an integer, received {batch_size!r}.'
        )
    size = check_integer("batch_size", batch_size)
    if batch_size > max_batch_size:
        raise InvalidInputError(
            f"Received batch_size={batch_size}, which is above max_batch_size={max_batch_size}. "
            "Lower `batch_size` or raise `max_batch_size`."
        )
    return size


def check_batch_axis(signature: "Signature") -> None:
    """Raises an error for a model whose inputs have a fixed batch size."""
    for spec in signature.inputs:
        if not spec.shape or spec.shape[0] is not None:
            raise NotSupportedError(
                f"The first axis of input {spec} is not a free batch axis, so requests can't share "
                "a batch. Serve a model whose inputs leave the batch size open."
            )

"""Network addresses of processes, written as `HOST:PORT`."""

import ipaddress
import re
import socket
from typing import Any

from keras_deepseek.errors import InvalidInputError, PeerLostError

_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s:/\[\]@]+)):(?P<port>[0-9]+)"
)
_LARGEST_PORT = 65535
_TIMEOUT = 10.0
"""Timeout in seconds for a connection."""


def parse_address(source: str, text: Any) -> tuple[str, int]:
    """Splits `HOST:PORT`, with an IPv6 host in brackets.

    `source` names the origin of the text in errors.
    """
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if match is None or not 0 < int(match["port"]) <= _LARGEST_PORT:
        raise InvalidInputError(
            f"{source} must be HOST:PORT with a port from 1 to {_LARGEST_PORT}, as in "
            f"'10.0.0.1:29500' or '[::1]:29500'; received {text!r}."
        )
    return (match["ipv6"] or match["host"]).lower(), int(match["port"])


def join_address(host: str, port: int) -> str:
    """Returns `HOST:PORT`, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_is_answered(what: str, text: str) -> None:
    """Raises a `PeerLostError` if no process listens at `HOST:PORT`.

    `what` names the expected service.
    """
    try:
        socket.create_connection(parse_address(f"The address of {what}", text), _TIMEOUT).close()
    except OSError as error:
        raise PeerLostError(f"There is no {what} at {text!r}: {error}.") from error


def is_loopback(host: str) -> bool:
    """Returns True if a host is a loopback name or address of this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

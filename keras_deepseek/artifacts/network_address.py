"""`HOST:PORT`, as arguments and environment variables write the address of a process."""

import ipaddress
import re
import socket
from typing import Any

from keras_deepseek.errors import InvalidInputError, PeerLostError

_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s:/\[\]@]+)):(?P<port>[0-9]+)"
)
_LARGEST_PORT = 65535
_PATIENCE = 10.0
"""Seconds that a machine has to answer in."""


def parse_address(source: str, text: Any) -> tuple[str, int]:
    """Returns host and port, or says what was received in their place.

    Args:
        source: string. Where the address was written, as the error names it.
        text: The address: `HOST:PORT`, an IPv6 host in brackets.

    Raises:
        InvalidInputError: It is no such address.

    Example:

    >>> parse_address("coordinator", "node-1:29500")
    ('node-1', 29500)
    """
    found = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if found is None or not 0 < int(found["port"]) <= _LARGEST_PORT:
        raise InvalidInputError(
            f"{source} must be HOST:PORT with a port from 1 to {_LARGEST_PORT}, as in "
            f"'10.0.0.1:29500' or '[::1]:29500'; received {text!r}."
        )
    return (found["ipv6"] or found["host"]).lower(), int(found["port"])


def join_address(host: str, port: int) -> str:
    """Returns what `parse_address` takes apart.

    Args:
        host: string. A name or an IP address.
        port: integer.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_is_answered(what: str, text: str) -> None:
    """Raises an error where nobody listens at an address.

    Args:
        what: string. What should be there, as the error names it.
        text: string. `HOST:PORT`.

    Raises:
        InvalidInputError: It is no such address.
        PeerLostError: Nobody does.
    """
    try:
        socket.create_connection(parse_address(f"The address of {what}", text), _PATIENCE).close()
    except OSError as error:
        raise PeerLostError(f"There is no {what} at {text!r}: {error}.") from error


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine, by a name or an address that others can't reach.

    Args:
        host: string. A name or an IP address.

    Example:

    >>> is_loopback("127.0.0.1"), is_loopback("10.0.0.1")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""Ports for the processes of a job to meet at."""

import contextlib
import errno
import os
import socket

from keras_deepseek.artifacts.network_address import join_address
from keras_deepseek.errors import InvalidInputError

LOOPBACK = "127.0.0.1"
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def find_free_ports(count: int) -> list[int]:
    """Returns ports of loopback that nobody listens at, all different.

    Args:
        count: integer. How many.
    """
    with contextlib.ExitStack() as stack:
        # Open all at once, or the same one might be found twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in sockets]


def check_port_is_free(host: str, port: int) -> None:
    """Raises an error where this machine has an address and somebody listens at the port.

    A host that is not this machine's, or whose name is not known here, is left to those who
    connect.

    Args:
        host: string. A name or an IP address.
        port: integer.

    Raises:
        InvalidInputError: The port is in use, or is not for everyone.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return
    for family, kind, protocol, _, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as listener:
            # Else a port that was used a minute ago would count as in use.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            problem = _bind(listener, address)
            if problem in _TAKEN:
                raise InvalidInputError(
                    f"Rank 0 can't listen at {join_address(host, port)}: {os.strerror(problem)}. "
                    "Name a free port."
                )


def _bind(listener: socket.socket, address: tuple[object, ...]) -> int:
    try:
        listener.bind(address)
    except OSError as error:
        return error.errno or 0
    return 0

"""Finds and checks network ports for the rendezvous of a job."""

import contextlib
import errno
import os
import socket

from keras_deepseek.artifacts.network_address import join_address
from keras_deepseek.errors import InvalidInputError

LOOPBACK = "127.0.0.1"
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def find_free_ports(count: int) -> list[int]:
    """Returns different free ports of the loopback interface."""
    with contextlib.ExitStack() as stack:
        # All are open at the same time, so that none is found twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind((LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in sockets]


def check_port_is_free(host: str, port: int) -> None:
    """Raises an error if the host is this machine and the port is in use.

    A host that is not this machine, or has an unknown name, is not checked.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return
    for family, kind, protocol, _, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as listener:
            # Without it, a port that was used a minute ago counts as in use.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            problem = _bind(listener, address)
            if problem in _TAKEN:
                raise InvalidInputError(
                    f"Rank 0 can't listen at {join_address(host, port)}: {os.strerror(problem)}. "
                    "Use a free port."
                )


def _bind(listener: socket.socket, address: tuple[object, ...]) -> int:
    try:
        listener.bind(address)
    except OSError as error:
        return error.errno or 0
    return 0

"""Where the processes of a training find each other, before an engine takes over.

An engine that waits for a process which never comes says so late and names nobody, or ends the
process: JAX does both. So they first tell rank 0, at the port that the engine will listen at, that
they are there. Nothing else goes that way.
"""

import contextlib
import socket
import time

from keras_deepseek.artifacts.errors import InvalidInputError, PeerLostError
from keras_deepseek.artifacts.network_address import is_loopback, parse_address

_ALL = b"all"
_MOST_BYTES = 65536


def meet(coordinator: str, world_size: int, rank: int, timeout: float) -> None:
    """Returns when all processes of a training are there.

    Args:
        coordinator: string. `HOST:PORT` of rank 0: on loopback it listens there alone.
        world_size: integer. The number of processes.
        rank: integer. Which of them this one is.
        timeout: float. How long to wait, in seconds.

    Raises:
        InvalidInputError: Rank 0 can't listen at that port.
        PeerLostError: A rank has not come in time; the error names it, on each that has.
    """
    host, port = parse_address("`coordinator`", coordinator)
    deadline = time.monotonic() + timeout
    if rank == 0:
        missing = _receive(host, port, world_size, deadline)
    else:
        missing = _report(host, port, rank, deadline)
    if missing:
        raise PeerLostError(
            f"Waited {timeout:g} s at {coordinator} for {world_size} processes, of which rank "
            f"{missing} did not come. Start what is missing, or see its log for why it ended."
        )


def _receive(host: str, port: int, world_size: int, deadline: float) -> str:
    """Returns the ranks that have not come, separated by commas, and tells all others of them."""
    missing = set(range(1, world_size))
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(host, port, world_size))
        peers = []
        while missing and (seconds := deadline - time.monotonic()) > 0:
            listener.settimeout(seconds)
            with contextlib.suppress(OSError, ValueError):  # Anybody may knock at a port.
                peer = stack.enter_context(listener.accept()[0])
                peer.settimeout(min(1.0, seconds))
                missing.discard(int(peer.recv(_MOST_BYTES)))
                peers.append(peer)
        answer = ", ".join(map(str, sorted(missing)))
        listener.close()  # Who is answered looks for the engine at that port.
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(answer.encode() or _ALL)
        for peer in peers:  # Who closes first can't listen at its port again at once.
            with contextlib.suppress(OSError):
                peer.recv(_MOST_BYTES)
    return answer


def _report(host: str, port: int, rank: int, deadline: float) -> str:
    """Returns the ranks that have not come, as rank 0 says, or rank 0 itself."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1.0) as peer:
            peer.sendall(str(rank).encode())
            # Rank 0 answers at its own deadline, which may be later.
            peer.settimeout(max(1.0, 2 * (deadline - time.monotonic())))
            answer = peer.recv(_MOST_BYTES)
            if answer:
                return "" if answer == _ALL else answer.decode()
        if time.monotonic() > deadline:
            return "0"
        time.sleep(0.1)


def _listen(host: str, port: int, world_size: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host if is_loopback(host) else "", port), family=family, backlog=world_size
        )
    except OSError as error:
        raise InvalidInputError(
            f"Rank 0 can't listen at {host}:{port}: {error.strerror}. Name another port as "
            "`coordinator`."
        ) from error

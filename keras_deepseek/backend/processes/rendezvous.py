"""The rendezvous of the processes of a training, before an engine takes over.

An engine that waits for a process which never comes reports it late and without its rank, or ends
the process: JAX does both. So the processes first report to rank 0, at the port that the engine
will use, with their addresses, which TensorFlow needs. Nothing else is sent that way.
"""

import contextlib
import json
import socket
import time
from typing import Any

from keras_deepseek.artifacts.network_address import is_loopback, join_address, parse_address
from keras_deepseek.errors import InvalidInputError, PeerLostError

_MOST_BYTES = 2**20


def meet(coordinator: str, world_size: int, rank: int, timeout: float, port: int = 0) -> list[str]:
    """Waits for all processes of a training, and returns their addresses by rank.

    Args:
        coordinator: string. `HOST:PORT` of rank 0. If it is loopback, rank 0 listens on it only.
        world_size: integer. The number of processes.
        rank: integer. The rank of this one.
        timeout: float. Seconds to wait.
        port: integer. The port at which this process will listen afterwards. Defaults to `0`: none.

    Raises:
        InvalidInputError: Rank 0 can't listen at that port.
        PeerLostError: A rank did not come in time. The error names it, on each rank that came.
    """
    host, meeting_port = parse_address("`coordinator`", coordinator)
    deadline = time.monotonic() + timeout
    if rank == 0:
        with _listen(host, meeting_port, world_size) as listener:
            found = _receive(listener, (host, port), world_size, deadline)
    else:
        found = _report((host, meeting_port), [rank, port], deadline)
    # Without rank 0 it is unknown which others came.
    missing = [each for each in range(world_size) if each not in found] if found else [0]
    if missing:
        raise PeerLostError(
            f"Waited {timeout:g} s at {coordinator} for {world_size} processes, of which rank "
            f"{', '.join(map(str, missing))} did not come. Start the missing processes, or see in "
            "their logs why they ended."
        )
    return [found[each] for each in range(world_size)]


def _receive(
    listener: socket.socket, own_address: tuple[str, int], world_size: int, deadline: float
) -> dict[int, str]:
    """Waits for the other ranks, sends them all addresses, and returns these by rank."""
    found = {0: join_address(*own_address)}
    with contextlib.ExitStack() as stack:
        peers = []
        while len(found) < world_size and (seconds := deadline - time.monotonic()) > 0:
            listener.settimeout(seconds)
            with contextlib.suppress(OSError, ValueError, TypeError):  # Any program may connect.
                connection, (came_from, *_) = listener.accept()
                peer = stack.enter_context(connection)
                peer.settimeout(min(1.0, seconds))
                rank, port = map(int, _read(peer))
                # A rank that connects by loopback is on the machine of rank 0.
                host = own_address[0] if is_loopback(came_from) else came_from
                found[rank] = join_address(host, port)
                peers.append(peer)
        listener.close()  # After the answer, the ranks expect the engine at that port.
        for peer in peers:
            with contextlib.suppress(OSError):
                _write(peer, list(found.items()))
        # The peer must close first: the side that does can't reuse its port at once.
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.recv(1)
    return found


def _report(address: tuple[str, int], greeting: list[int], deadline: float) -> dict[int, str]:
    """Reports to rank 0, and returns the addresses by rank, empty if rank 0 did not come."""
    while True:
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection(address, 1.0) as peer,
        ):
            _write(peer, greeting)
            # Rank 0 answers at its own deadline, which may be later.
            peer.settimeout(max(1.0, 2 * (deadline - time.monotonic())))
            return {int(rank): str(found) for rank, found in _read(peer)}
        if time.monotonic() > deadline:
            return {}
        time.sleep(0.1)


def _write(peer: socket.socket, message: list[Any]) -> None:
    """Sends a message."""
    peer.sendall(json.dumps(message).encode() + b"\n")


def _read(peer: socket.socket) -> list[Any]:
    """Returns a received message."""
    with peer.makefile("rb") as file:
        message: list[Any] = json.loads(file.readline(_MOST_BYTES))
    return message


def _listen(host: str, port: int, world_size: int) -> socket.socket:
    """Returns rank 0's listening socket."""
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

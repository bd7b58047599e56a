"""The rendezvous of processes that train together, before the framework connects them.

Rank 0 listens at the coordinator's address. Each other rank connects and tells its rank and the
port that it will listen at. When all have come, rank 0 sends all addresses to all of them, and
closes the port for the framework. Nothing else is sent.

The frameworks can't do this themselves. If a rank is missing, JAX aborts the process without naming
the rank. TensorFlow needs the addresses of all ranks in advance, and waits for a missing one even
after SIGTERM. PyTorch's store knows no secret, and logs stack traces while it waits.

If `KERAS_DEEPSEEK_JOIN_SECRET` is set, both sides prove by HMAC that they know it: the other rank
signs a nonce of rank 0, and rank 0 signs a nonce of the other rank together with its answer.

A process with another secret, another world size or the rank of another process gets the reason as
the answer, and raises it at once. Rank 0 goes on waiting. The secret is checked first, so that a
stranger learns nothing else.
"""

import hashlib
import hmac
import json
import os
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from typing import Any

from keras_deepseek.artifacts.network_address import is_loopback, join_address, parse_address
from keras_deepseek.errors import InvalidInputError, PeerLostError

SECRET_VARIABLE = "KERAS_DEEPSEEK_JOIN_SECRET"
"""Holds a secret that all processes of a training know. `keras-deepseek launch` makes one."""

_OTHER_SECRET = (
    f"it did not prove the same {SECRET_VARIABLE} as rank 0. Set it to the same value for all "
    "processes, or for none."
)
"""The only reason that is not signed, since the refused process could not check the signature."""

_MAX_GREETING = 1024
"""Bytes of a message, except the one with the addresses."""

_MAX_ADDRESS = 512
"""Bytes of one rank in the message with the addresses."""

_GREETING_TIME = 5.0
"""Seconds that a process has to send its greeting after it has connected to rank 0."""

_ANSWER_TIME = 5.0
"""Seconds that rank 0 has to send the addresses, after the last rank came or the time was over."""


def rendezvous(
    coordinator: str,
    world_size: int,
    rank: int,
    timeout: float,
    port: int = 0,
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """Waits up to `timeout` seconds until all ranks have come; returns their addresses by rank.

    `coordinator` is `HOST:PORT` of rank 0. Rank 0 listens on all interfaces, or on loopback alone
    if the host is loopback. `port` is where this rank will listen afterwards; 0 for nowhere. If a
    rank is missing, each rank that came raises `PeerLostError` with the numbers of all missing
    ranks. A rank that rank 0 refuses raises `InvalidInputError` with the reason.
    """
    host, coordinator_port = parse_address("`coordinator`", coordinator)
    secret = read_join_secret(environ)
    deadline = time.monotonic() + timeout
    if rank == 0:
        with _Server(host, coordinator_port, port, world_size, secret) as server:
            addresses, note = server.run(deadline), server.note
    else:
        client = _Client((host, coordinator_port), rank, port, world_size, secret)
        # Rank 0 may have started later than this rank, and answers at its own deadline.
        addresses, note = client.run(deadline, deadline + timeout + _ANSWER_TIME), client.note
    # If rank 0 did not come, nobody knows who else did.
    expected = range(world_size if addresses else 1)
    missing = [str(peer_rank) for peer_rank in expected if peer_rank not in addresses]
    if missing:
        raise PeerLostError(
            f"Waited {timeout:g} s at {coordinator} for {world_size} processes; rank "
            f"{', '.join(missing)} did not come.{note} Start what is missing, or see its log for "
            "why it ended."
        )
    return [addresses[peer_rank] for peer_rank in range(world_size)]


def read_join_secret(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the secret of the environment, or `None` without one; an empty one is an error."""
    secret = environ.get(SECRET_VARIABLE)
    if secret == "":
        raise InvalidInputError(
            f"{SECRET_VARIABLE} is empty, which protects nothing. Set it to the same secret for "
            "all processes, or unset it to join without one."
        )
    return secret


def listen_at(host: str, port: int, world_size: int) -> socket.socket:
    """Opens the socket at which rank 0 listens, on loopback only if the host is loopback."""
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


def _sign(secret: str | None, *parts: Any) -> str:
    """Signs a message: returns its HMAC in hex, or an empty string without a secret."""
    if secret is None:
        return ""
    return hmac.new(secret.encode(), json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def _is_same(signature: str, expected: str) -> bool:
    """Compares two signatures in constant time."""
    return hmac.compare_digest(signature.encode(errors="replace"), expected.encode())


class _Server(socketserver.ThreadingTCPServer):
    """The rank 0 side of the rendezvous, which collects all addresses and sends them to all.

    Each connection has its own thread, so that a slow or silent one does not delay the others.
    """

    daemon_threads = True

    def __init__(
        self, host: str, coordinator_port: int, port: int, world_size: int, secret: str | None
    ) -> None:
        super().__init__((host, coordinator_port), _Connection, bind_and_activate=False)
        self.socket.close()
        self.socket = listen_at(host, coordinator_port, world_size)
        self.host, self.world_size, self.secret = host, world_size, secret
        self._addresses = {0: join_address(host, port)}
        self._nonces: dict[int, str] = {}  # Of the connection of each rank that waits.
        self._changed = threading.Condition()
        self._is_over = False
        self.refused: list[str] = []

    @property
    def note(self) -> str:
        """A sentence for an error message with the number of refused processes and a reason."""
        if not self.refused:
            return ""
        return f" Refused processes: {len(self.refused)}, the last because {self.refused[-1]}"

    def run(self, deadline: float) -> dict[int, str]:
        """Waits until all ranks have come or the time is over; returns the addresses by rank."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with self._changed:
                seconds = max(0.0, deadline - time.monotonic())
                self._changed.wait_for(lambda: len(self._addresses) == self.world_size, seconds)
        finally:
            self.shutdown()
            self.server_close()  # The ranks will look for the framework at this port.
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
                # `forget` removes the nonce of a connection whose process has its answer.
                self._changed.wait_for(lambda: not self._nonces, _ANSWER_TIME)
        return self._addresses

    def wait_for_all(self, rank: int, address: str, nonce: str) -> list[tuple[int, str]] | str:
        """Registers a process, and waits for the others.

        Returns the addresses of all that came, or the reason for refusing this process, for example
        because a newer one has the same rank.
        """
        with self._changed:
            if self._is_over:
                raise ValueError("The time is over.")  # The connection closes without an answer.
            self._addresses[rank] = address
            self._nonces[rank] = nonce
            self._changed.notify_all()
            # The newer one stays: the older may have ended, or lost its connection.
            self._changed.wait_for(lambda: self._is_over or self._nonces.get(rank) != nonce)
            if self._nonces.get(rank) != nonce:
                return f"two processes were started as rank {rank}. Give each process its own rank."
            return sorted(self._addresses.items())

    def forget(self, rank: int, nonce: str) -> None:
        """Ends the waiting for a rank that has its answer."""
        with self._changed:
            if self._nonces.get(rank) == nonce:
                del self._nonces[rank]
                self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: anybody may connect, as a port scanner."""


class _Connection(socketserver.BaseRequestHandler):
    """A connection of rank 0 to a process, whose greeting it checks and answers."""

    server: _Server

    def handle(self) -> None:
        challenge = secrets.token_hex(16)
        self._send(challenge)
        message = _read_line(self.request, _MAX_GREETING, time.monotonic() + _GREETING_TIME)
        match message:
            case [int(rank), int(port), int(world_size), str(nonce), str(signature)]:
                pass
            case _:
                return
        nonces, size = (challenge, nonce), self.server.world_size
        expected = _sign(self.server.secret, "rank", *nonces, rank, port, world_size)
        if not _is_same(signature, expected):
            self._answer(_OTHER_SECRET, nonces)
        elif world_size != size:
            reason = (
                f"rank {rank} was started with world_size={world_size}, but rank 0 with "
                f"world_size={size}. Start all processes with the same number."
            )
            self._answer(reason, nonces)
        elif 0 < rank < size and 0 <= port < 2**16:
            # A rank that connects by loopback runs on the machine of rank 0.
            host = self.client_address[0]
            address = join_address(self.server.host if is_loopback(host) else host, port)
            try:
                self._answer(self.server.wait_for_all(rank, address, challenge), nonces)
                # The side that closes first can't listen at its port again at once: wait for it.
                self.request.recv(1)
            finally:
                self.server.forget(rank, challenge)

    def _answer(self, answer: list[tuple[int, str]] | str, nonces: tuple[str, str]) -> None:
        """Sends all addresses, or the reason for a refusal, signed if the process can check it."""
        if isinstance(answer, str):
            self.server.refused.append(answer)
        secret = None if answer == _OTHER_SECRET else self.server.secret
        self._send(answer, _sign(secret, "answer", *nonces, answer))

    def _send(self, *message: Any) -> None:
        self.request.settimeout(_ANSWER_TIME)
        self.request.sendall(json.dumps(message).encode() + b"\n")


class _Client:
    """The side of another rank, which sends its port and gets the addresses of all by rank."""

    def __init__(
        self, address: tuple[str, int], rank: int, port: int, world_size: int, secret: str | None
    ) -> None:
        self._address = address
        self._identity = rank, port, world_size
        self._secret = secret
        self.note = ""
        """A sentence for an error message about a listening process that is not rank 0."""

    def run(self, deadline: float, answer_deadline: float) -> dict[int, str]:
        """Returns the addresses of all ranks by rank, or none if rank 0 did not come.

        It connects until `deadline` and waits for the addresses until `answer_deadline`, both by
        `time.monotonic`. Raises `InvalidInputError` if rank 0 refuses this process.
        """
        while (seconds := deadline - time.monotonic()) > 0:
            try:
                with socket.create_connection(self._address, min(1.0, seconds)) as peer:
                    answer = self._exchange(peer, deadline, answer_deadline)
            except (OSError, ValueError, TypeError, AttributeError, RecursionError):
                time.sleep(0.1)
                continue
            if isinstance(answer, str):
                raise InvalidInputError(f"This process can't join rank 0 because {answer}")
            return answer
        return {}

    def _exchange(
        self, peer: socket.socket, deadline: float, answer_deadline: float
    ) -> dict[int, str] | str:
        """Returns the addresses, or the reason why rank 0 refuses this process."""
        (challenge,) = _read_line(peer, _MAX_GREETING, deadline)
        nonce = secrets.token_hex(16)
        signature = _sign(self._secret, "rank", challenge, nonce, *self._identity)
        peer.sendall(json.dumps([*self._identity, nonce, signature]).encode() + b"\n")
        self.note = (
            " A process listened there, but did not answer as rank 0 of this training with the "
            f"same {SECRET_VARIABLE}."
        )
        max_bytes = _MAX_GREETING + _MAX_ADDRESS * self._identity[-1]
        answer, signature = _read_line(peer, max_bytes, answer_deadline)
        expected = _sign(self._secret, "answer", challenge, nonce, answer)
        if answer != _OTHER_SECRET and not _is_same(signature, expected):
            raise ValueError
        return answer if isinstance(answer, str) else {int(rank): str(at) for rank, at in answer}


def _read_line(peer: socket.socket, max_bytes: int, deadline: float) -> list[Any]:
    """Reads one message of a limited size, or raises `OSError` or `ValueError`."""
    received = b""
    while not received.endswith(b"\n"):
        peer.settimeout(max(0.001, deadline - time.monotonic()))
        data = peer.recv(65536)
        received += data
        if not data or len(received) > max_bytes or time.monotonic() > deadline:
            raise ValueError
    message: list[Any] = json.loads(received)
    return message

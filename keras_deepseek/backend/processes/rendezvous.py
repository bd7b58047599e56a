"""The rendezvous of processes that train together, before JAX or TensorFlow connects them.

Rank 0 listens at the coordinator's address. Each other rank connects and tells its rank and the
port that it will listen at. When all have come, rank 0 sends all addresses to all of them, and
closes the port for the framework. Nothing else is sent.

The frameworks can't do this themselves. If a rank is missing, JAX ends the process without naming
the rank, and TensorFlow needs the addresses of all ranks in advance. PyTorch has its own
rendezvous, `torch.distributed.TCPStore`.

If `KERAS_DEEPSEEK_JOIN_SECRET` is set, both sides prove by HMAC that they know it: the other rank
signs a nonce of rank 0, and rank 0 signs a nonce of the other rank together with the addresses.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_deepseek.artifacts.network_address import is_loopback, join_address, parse_address
from keras_deepseek.errors import InvalidInputError, PeerLostError

SECRET_VARIABLE = "KERAS_DEEPSEEK_JOIN_SECRET"
"""Holds a secret that all processes of a training know. `keras-deepseek launch` makes one."""

_MAX_GREETING = 1024
"""Bytes of a message, except the one with the addresses."""

_MAX_ADDRESS = 512
"""Bytes of one rank in the message with the addresses."""

_MAX_PENDING = 256
"""Connections that have not sent their greeting. If more come, the oldest is closed."""

_ANSWER_TIME = 5.0
"""Seconds that rank 0 has to send the addresses, after the last rank came or the time was over."""


def meet(
    coordinator: str,
    world_size: int,
    rank: int,
    timeout: float,
    port: int = 0,
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """Waits up to `timeout` seconds until all ranks have come; returns their addresses by rank.

    `coordinator` is `HOST:PORT` of rank 0, which listens on loopback only if that is loopback.
    `port` is the one that this rank will listen at afterwards, 0 for none. If a rank did not come,
    each that came raises `PeerLostError` with the names of all that are missing.
    """
    host, coordinator_port = parse_address("`coordinator`", coordinator)
    secret = environ.get(SECRET_VARIABLE) or None
    deadline = time.monotonic() + timeout
    if rank == 0:
        with listen_at(host, coordinator_port, world_size) as listener:
            server = _Server(listener, host, port, world_size, secret)
            found, note = server.run(deadline), server.note
    else:
        client = _Client((host, coordinator_port), rank, port, world_size, secret)
        # Rank 0 may have started later than this rank, and answers at its own deadline.
        found, note = client.run(deadline, deadline + timeout + _ANSWER_TIME), client.note
    # If rank 0 did not come, nobody knows who else did.
    missing = [each for each in range(world_size) if each not in found] if found else [0]
    if missing:
        raise missing_ranks_error(coordinator, world_size, timeout, missing, note)
    return [found[each] for each in range(world_size)]


def missing_ranks_error(
    coordinator: str, world_size: int, timeout: float, missing: Sequence[int], note: str = ""
) -> PeerLostError:
    """Returns the error that names the ranks that have not joined."""
    return PeerLostError(
        f"Waited {timeout:g} s at {coordinator} for {world_size} processes; rank "
        f"{', '.join(map(str, missing))} did not come.{note} Start what is missing, or see its log "
        "for why it ended."
    )


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


@dataclass(frozen=True)
class _Greeting:
    rank: int
    port: int
    nonce: str
    signature: str


@dataclass
class _Connection:
    """A connection to rank 0 whose greeting message is incomplete."""

    socket: socket.socket
    host: str
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    received: bytes = b""

    def read_greeting(self) -> _Greeting | None:
        """Reads the received bytes; returns the greeting message if it is complete.

        Raises `OSError` for a broken connection, and `ValueError` for a closed one or a bad
        greeting.
        """
        data = self.socket.recv(_MAX_GREETING)
        self.received += data
        if not data or len(self.received) > _MAX_GREETING:
            raise ValueError
        if not self.received.endswith(b"\n"):
            return None
        match json.loads(self.received):
            case [int(rank), int(port), str(nonce), str(signature)]:
                return _Greeting(rank, port, nonce, signature)
        raise ValueError


class _Server:
    """The rank 0 side of the rendezvous, which collects all addresses and sends them to all.

    It reads all connections at once, so that a slow or silent one does not delay the others.
    """

    def __init__(
        self, listener: socket.socket, host: str, port: int, world_size: int, secret: str | None
    ) -> None:
        self._listener = listener
        self._own_host = host
        self._found = {0: join_address(host, port)}
        self._world_size = world_size
        self._secret = secret
        self._pending: dict[socket.socket, _Connection] = {}
        self._greeted: dict[int, tuple[socket.socket, str, str]] = {}  # With both nonces.
        self._num_refused = 0

    @property
    def note(self) -> str:
        """A sentence for an error message with the number of rejected connections."""
        if not self._num_refused:
            return ""
        return (
            f" {self._num_refused} connections were refused because they did not prove the same "
            f"{SECRET_VARIABLE} as rank 0: set it to the same value for all processes, or for none."
        )

    def run(self, deadline: float) -> dict[int, str]:
        """Waits until all ranks have come or the time is over; returns the addresses by rank."""
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            stack.callback(self._close_all)
            self._listener.settimeout(0.0)
            selector.register(self._listener, selectors.EVENT_READ)
            while len(self._found) < self._world_size:
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    break
                for key, _ in selector.select(seconds):
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif key.data.socket in self._pending:  # Else it was closed just now.
                        self._read(selector, key.data)
            self._listener.close()  # The ranks will look for the framework at this port.
            self._send_addresses(time.monotonic() + _ANSWER_TIME)
        return self._found

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            accepted, (host, *_) = self._listener.accept()
            accepted.settimeout(0.0)
            connection = _Connection(accepted, host)
            self._pending[accepted] = connection
            selector.register(accepted, selectors.EVENT_READ, connection)
            if len(self._pending) > _MAX_PENDING:
                self._drop(selector, next(iter(self._pending)))
            try:
                accepted.send(json.dumps([connection.nonce]).encode() + b"\n")
            except OSError:
                self._drop(selector, accepted)

    def _read(self, selector: selectors.BaseSelector, connection: _Connection) -> None:
        try:
            greeting = connection.read_greeting()
        except (OSError, ValueError, RecursionError):  # Anybody may connect, as a port scanner.
            self._drop(selector, connection.socket)
            return
        if greeting is None:
            return
        rank, port = greeting.rank, greeting.port
        expected = _sign(self._secret, "rank", connection.nonce, greeting.nonce, rank, port)
        is_known = _is_same(greeting.signature, expected)
        self._num_refused += not is_known
        if not (is_known and 0 < rank < self._world_size and 0 <= port < 2**16):
            self._drop(selector, connection.socket)
            return
        selector.unregister(connection.socket)
        del self._pending[connection.socket]
        # A rank that connects by loopback runs on the machine of rank 0.
        host = self._own_host if is_loopback(connection.host) else connection.host
        self._found[rank] = join_address(host, port)
        if rank in self._greeted:  # It has lost its first connection.
            self._greeted[rank][0].close()
        self._greeted[rank] = connection.socket, connection.nonce, greeting.nonce

    def _drop(self, selector: selectors.BaseSelector, refused: socket.socket) -> None:
        selector.unregister(refused)
        del self._pending[refused]
        refused.close()

    def _send_addresses(self, deadline: float) -> None:
        addresses = sorted(self._found.items())
        for peer, *nonces in self._greeted.values():
            signature = _sign(self._secret, "addresses", *nonces, addresses)
            message = json.dumps([addresses, signature]).encode() + b"\n"
            with contextlib.suppress(OSError):
                peer.settimeout(max(0.001, deadline - time.monotonic()))
                peer.sendall(message)
        for peer, *_ in self._greeted.values():
            # The side that closes first can't listen at its port again at once: let it be theirs.
            with contextlib.suppress(OSError):
                peer.settimeout(max(0.001, deadline - time.monotonic()))
                peer.recv(1)

    def _close_all(self) -> None:
        for each in [*self._pending, *(peer for peer, *_ in self._greeted.values())]:
            each.close()


class _Client:
    """The side of another rank in the rendezvous, which sends its port and gets all addresses."""

    def __init__(
        self, address: tuple[str, int], rank: int, port: int, world_size: int, secret: str | None
    ) -> None:
        self._address = address
        self._rank = rank
        self._port = port
        self._max_answer = _MAX_GREETING + _MAX_ADDRESS * world_size
        self._secret = secret
        self._was_heard = False

    @property
    def note(self) -> str:
        """A sentence for an error message about a listening process that sent nothing."""
        if not self._was_heard:
            return ""
        return (
            " A process listened there and did not send the addresses. Rank 0 refuses a process "
            f"whose {SECRET_VARIABLE} differs from its own."
        )

    def run(self, deadline: float, answer_deadline: float) -> dict[int, str]:
        """Returns the addresses of all ranks by rank, or none if rank 0 did not come.

        It connects until `deadline` and waits for the addresses until `answer_deadline`, both by
        `time.monotonic`.
        """
        while (seconds := deadline - time.monotonic()) > 0:
            with (
                contextlib.suppress(OSError, ValueError, TypeError, RecursionError),
                socket.create_connection(self._address, min(1.0, seconds)) as peer,
            ):
                return self._exchange(peer, deadline, answer_deadline)
            time.sleep(0.1)
        return {}

    def _exchange(
        self, peer: socket.socket, deadline: float, answer_deadline: float
    ) -> dict[int, str]:
        (challenge,) = _read_line(peer, _MAX_GREETING, deadline)
        nonce = secrets.token_hex(16)
        signature = _sign(self._secret, "rank", challenge, nonce, self._rank, self._port)
        peer.sendall(json.dumps([self._rank, self._port, nonce, signature]).encode() + b"\n")
        self._was_heard = True
        addresses, signature = _read_line(peer, self._max_answer, answer_deadline)
        expected = _sign(self._secret, "addresses", challenge, nonce, addresses)
        if not _is_same(str(signature), expected):
            raise ValueError
        return {int(rank): str(found) for rank, found in addresses}


def _read_line(peer: socket.socket, max_bytes: int, deadline: float) -> list[Any]:
    """Reads one message, of a limited size and before a deadline.

    Raises `OSError` if it is late, and `ValueError` for a closed connection or a bad message.
    """
    received = b""
    while not received.endswith(b"\n"):
        peer.settimeout(max(0.001, deadline - time.monotonic()))
        data = peer.recv(65536)
        received += data
        if not data or len(received) > max_bytes:
            raise ValueError
        if time.monotonic() > deadline:
            raise TimeoutError
    message: list[Any] = json.loads(received)
    return message

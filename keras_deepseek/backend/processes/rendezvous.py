"""The rendezvous of processes that train together, before JAX or TensorFlow connects them.

Rank 0 listens at the coordinator's address. Each other rank connects and tells its rank and the
port that it will listen at. When all have come, rank 0 sends all addresses to all of them, and
closes the port for the framework. Nothing else is sent.

The frameworks can't do this themselves. If a rank is missing, JAX ends the process without naming
the rank, and TensorFlow needs the addresses of all ranks in advance. PyTorch has its own
rendezvous, `torch.distributed.TCPStore`.

If `KERAS_DEEPSEEK_JOIN_SECRET` is set, both sides prove by HMAC that they know it: the other rank
signs a nonce of rank 0, and rank 0 signs a nonce of the other rank together with its answer.

A process with another secret, another world size or the rank of another process gets the reason as
the answer, and raises it at once. Rank 0 goes on waiting. The secret is checked first, so that a
stranger learns nothing else.
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

_OTHER_SECRET = (
    f"it did not prove the same {SECRET_VARIABLE} as rank 0. Set it to the same value for all "
    "processes, or for none."
)
"""The only reason that is not signed, since the refused process could not check the signature."""

_MAX_GREETING = 1024
"""Bytes of a message, except the one with the addresses."""

_MAX_ADDRESS = 512
"""Bytes of one rank in the message with the addresses."""

_MAX_PENDING = 256
"""Connections that have not sent their greeting. If more come, the oldest is closed."""

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

    `coordinator` is `HOST:PORT` of rank 0, which listens on loopback only if that is loopback.
    `port` is the one that this rank will listen at afterwards, 0 for none. If a rank did not come,
    each that came raises `PeerLostError` with the names of all that are missing. A rank that rank 0
    refuses raises `InvalidInputError` with the reason.
    """
    host, coordinator_port = parse_address("`coordinator`", coordinator)
    secret = read_join_secret(environ)
    deadline = time.monotonic() + timeout
    if rank == 0:
        with listen_at(host, coordinator_port, world_size) as listener:
            server = _Server(listener, host, port, world_size, secret)
            addresses, note = server.run(deadline), server.note
    else:
        client = _Client((host, coordinator_port), rank, port, world_size, secret)
        # Rank 0 may have started later than this rank, and answers at its own deadline.
        addresses, note = client.run(deadline, deadline + timeout + _ANSWER_TIME), client.note
    # If rank 0 did not come, nobody knows who else did.
    missing = (
        [peer_rank for peer_rank in range(world_size) if peer_rank not in addresses]
        if addresses
        else [0]
    )
    if missing:
        raise missing_ranks_error(coordinator, world_size, timeout, missing, note)
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


def other_size_reason(rank: int, world_size: int, size_of_rank_0: int) -> str:
    """Returns the reason for refusing a process whose world size is not that of rank 0."""
    return (
        f"rank {rank} was started with world_size={world_size}, but rank 0 with "
        f"world_size={size_of_rank_0}. Start all processes with the same number."
    )


def same_rank_reason(rank: int) -> str:
    """Returns the reason for refusing one of two processes of the same rank."""
    return f"two processes were started as rank {rank}. Give each process its own rank."


def refused_error(reason: str) -> InvalidInputError:
    """Returns the error of a process that rank 0 has refused."""
    return InvalidInputError(f"This process can't join rank 0 because {reason}")


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
    world_size: int
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
            case [int(rank), int(port), int(world_size), str(nonce), str(signature)]:
                return _Greeting(rank, port, world_size, nonce, signature)
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
        self._last_reason = ""

    @property
    def note(self) -> str:
        """A sentence for an error message with the number of refused processes and a reason."""
        if not self._num_refused:
            return ""
        return f" Refused processes: {self._num_refused}, the last because {self._last_reason}"

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
        rank, port, world_size = greeting.rank, greeting.port, greeting.world_size
        nonces = connection.nonce, greeting.nonce
        expected = _sign(self._secret, "rank", *nonces, rank, port, world_size)
        if not _is_same(greeting.signature, expected):
            self._refuse(connection.socket, _OTHER_SECRET)
        elif world_size != self._world_size:
            reason = other_size_reason(rank, world_size, self._world_size)
            self._refuse(connection.socket, reason, *nonces)
        elif 0 < rank < self._world_size and 0 <= port < 2**16:
            selector.unregister(connection.socket)
            del self._pending[connection.socket]
            # A rank that connects by loopback runs on the machine of rank 0.
            host = self._own_host if is_loopback(connection.host) else connection.host
            self._found[rank] = join_address(host, port)
            if rank in self._greeted:
                # The newer one stays: the older may have ended, or lost its connection.
                older, *older_nonces = self._greeted[rank]
                self._refuse(older, same_rank_reason(rank), *older_nonces)
                older.close()
            self._greeted[rank] = connection.socket, *nonces
            return
        self._drop(selector, connection.socket)

    def _refuse(self, refused: socket.socket, reason: str, *nonces: str) -> None:
        """Sends a process the reason why it can't take part, signed if it knows the secret."""
        self._num_refused += 1
        self._last_reason = reason
        signature = _sign(self._secret, "refused", *nonces, reason) if nonces else ""
        with contextlib.suppress(OSError):
            refused.send(json.dumps([reason, signature]).encode() + b"\n")

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
        for peer in [*self._pending, *(peer for peer, *_ in self._greeted.values())]:
            peer.close()


class _Client:
    """The side of another rank in the rendezvous, which sends its port and gets all addresses."""

    def __init__(
        self, address: tuple[str, int], rank: int, port: int, world_size: int, secret: str | None
    ) -> None:
        self._address = address
        self._rank = rank
        self._port = port
        self._world_size = world_size
        self._max_answer = _MAX_GREETING + _MAX_ADDRESS * world_size
        self._secret = secret
        self._was_heard = False

    @property
    def note(self) -> str:
        """A sentence for an error message about a listening process that is not rank 0."""
        if not self._was_heard:
            return ""
        return (
            " A process listened there, but did not answer as rank 0 of this training with the "
            f"same {SECRET_VARIABLE}."
        )

    def run(self, deadline: float, answer_deadline: float) -> dict[int, str]:
        """Returns the addresses of all ranks by rank, or none if rank 0 did not come.

        It connects until `deadline` and waits for the addresses until `answer_deadline`, both by
        `time.monotonic`. Raises `InvalidInputError` if rank 0 refuses this process.
        """
        while (seconds := deadline - time.monotonic()) > 0:
            try:
                with socket.create_connection(self._address, min(1.0, seconds)) as peer:
                    return self._exchange(peer, deadline, answer_deadline)
            except InvalidInputError:
                raise
            except (OSError, ValueError, TypeError, RecursionError):
                time.sleep(0.1)
        return {}

    def _exchange(
        self, peer: socket.socket, deadline: float, answer_deadline: float
    ) -> dict[int, str]:
        (challenge,) = _read_line(peer, _MAX_GREETING, deadline)
        nonce = secrets.token_hex(16)
        identity = self._rank, self._port, self._world_size
        signature = _sign(self._secret, "rank", challenge, nonce, *identity)
        peer.sendall(json.dumps([*identity, nonce, signature]).encode() + b"\n")
        self._was_heard = True
        answer, signature = _read_line(peer, self._max_answer, answer_deadline)
        if answer == _OTHER_SECRET:
            raise refused_error(_OTHER_SECRET)
        kind = "refused" if isinstance(answer, str) else "addresses"
        if not _is_same(str(signature), _sign(self._secret, kind, challenge, nonce, answer)):
            raise ValueError
        if isinstance(answer, str):
            raise refused_error(answer)
        return {int(rank): str(address) for rank, address in answer}


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

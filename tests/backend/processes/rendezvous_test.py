import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.backend.processes import rendezvous as rendezvous_module
from keras_deepseek.backend.processes.rendezvous import SECRET_VARIABLE, rendezvous
from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.launch.plan import find_free_ports


def meet_all(starts, timeout, secrets=None):
    """Returns what each process has found: the addresses of all ranks, or an error's message.

    `starts` has the rank and the world size of each process, and `secrets` the secret, or `None`.
    """
    address = f"127.0.0.1:{find_free_ports(1)[0]}"

    def come(start, secret):
        (rank, world_size), environ = start, make_environ(secret)
        try:
            return rendezvous(address, world_size, rank, timeout, 7000 + rank, environ)
        except (PeerLostError, InvalidInputError) as error:
            return str(error)

    with ThreadPoolExecutor(len(starts)) as threads:
        return list(threads.map(come, starts, secrets or [None] * len(starts)))


def make_environ(secret):
    return {} if secret is None else {SECRET_VARIABLE: secret}


def connect(port):
    """Returns a connection to rank 0, which may not listen yet."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 10.0)
        except ConnectionRefusedError:
            pass


def read_line(peer):
    with peer.makefile("rb") as file:
        return json.loads(file.readline())


@pytest.mark.parametrize("secrets", [None, ["known"] * 4])
def test_processes_meet_in_any_order(secrets):
    addresses = [f"127.0.0.1:{7000 + rank}" for rank in range(4)]
    assert meet_all([(rank, 4) for rank in (3, 1, 0, 2)], 30, secrets) == [addresses] * 4


def test_missing_ranks_are_named_on_all_that_come():
    for message in meet_all([(0, 4), (2, 4)], timeout=0.5):
        assert "for 4 processes; rank 1, 3 did not come" in message


def test_a_missing_rank_0_is_named():
    assert "rank 0 did not come" in meet_all([(1, 2)], timeout=0.1)[0]


def test_an_empty_secret_is_an_error():
    with pytest.raises(InvalidInputError, match=f"{SECRET_VARIABLE} is empty"):
        rendezvous("127.0.0.1:29500", 2, 0, 30, environ={SECRET_VARIABLE: ""})


@pytest.fixture
def rank_0():
    """A rank 0 of two that waits, its port, and the secret that it knows."""
    with waiting_rank_0(timeout=30) as waiting:
        yield waiting


@contextlib.contextmanager
def waiting_rank_0(timeout, secret="known"):
    port = find_free_ports(1)[0]
    environ = make_environ(secret)
    with ThreadPoolExecutor(1) as thread:
        yield (
            thread.submit(rendezvous, f"127.0.0.1:{port}", 2, 0, timeout, 7000, environ),
            port,
            environ,
        )


def check_refusal(reason, world_size=2, secret="known", secret_of_rank_0="known"):
    """Checks that a process is refused at once, and that rank 0 goes on waiting for another."""
    with waiting_rank_0(timeout=30, secret=secret_of_rank_0) as (future, port, environ):
        with pytest.raises(InvalidInputError, match=reason):
            rendezvous(f"127.0.0.1:{port}", world_size, 1, 30, 7001, make_environ(secret))
        assert not future.done()
        assert rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ) == future.result()


@pytest.mark.parametrize(
    ("secret_of_rank_0", "secret"), [("one", "other"), ("one", None), (None, "other")]
)
def test_a_process_with_another_secret_is_told_so(secret_of_rank_0, secret):
    reason = f"did not prove the same {SECRET_VARIABLE} as rank 0"
    check_refusal(reason, secret=secret, secret_of_rank_0=secret_of_rank_0)


@pytest.mark.parametrize("secret", [None, "known"])
def test_a_process_with_another_world_size_is_told_so(secret):
    reason = "rank 1 was started with world_size=3, but rank 0 with world_size=2"
    check_refusal(reason, world_size=3, secret=secret, secret_of_rank_0=secret)


@pytest.mark.parametrize("secret", [None, "known"])
def test_one_of_two_processes_of_one_rank_is_told_so(secret):
    secrets = None if secret is None else [secret] * 3
    rank_0, *errors = meet_all([(0, 3), (1, 3), (1, 3)], 0.5, secrets)
    assert "Refused processes: 1, the last because two processes were started as rank 1" in rank_0
    assert sum("two processes were started as rank 1" in error for error in errors) == 1
    assert sum("rank 2 did not come" in error for error in errors) == 1


def test_the_error_of_rank_0_says_why_it_has_refused_a_process():
    with waiting_rank_0(timeout=0.5) as (future, port, _):
        with pytest.raises(InvalidInputError):
            rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, {SECRET_VARIABLE: "other"})
        with pytest.raises(PeerLostError, match="Refused processes: 1, the last because"):
            future.result()


def test_a_process_without_the_secret_does_not_learn_the_world_size(rank_0):
    future, port, environ = rank_0
    with connect(port) as peer:
        read_line(peer)
        peer.sendall(b'[1, 7009, 3, "nonce", "' + b"0" * 64 + b'"]\n')
        reason, signature = read_line(peer)
        assert SECRET_VARIABLE in reason
        assert signature == ""
    assert rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ) == future.result()


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"[1]\n",
        b"1\n",
        b"",
        b"[" * 1000 + b"\n",
        b'[Infinity, 0, 2, "", ""]\n',
        b'[1, 7009, 2, "nonce", "\\ud800"]\n',
        b'[1, 7009, 2, "nonce", "' + b"0" * 64 + b'"]\n',
        b"x" * 100_000,
    ],
)
def test_a_stranger_that_connects_changes_nothing(rank_0, greeting):
    future, port, environ = rank_0
    with connect(port) as peer:
        peer.sendall(greeting)
        assert rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ) == future.result()
    assert future.result() == ["127.0.0.1:7000", "127.0.0.1:7001"]


@pytest.mark.parametrize("secret", [None, "known"])
def test_no_peer_replaces_the_address_of_rank_0(secret):
    with waiting_rank_0(timeout=30, secret=secret) as (future, port, environ):
        with connect(port) as peer:
            (challenge,) = read_line(peer)
            signature = rendezvous_module._sign(secret, "rank", challenge, "nonce", 0, 6666, 2)
            peer.sendall(json.dumps([0, 6666, 2, "nonce", signature]).encode() + b"\n")
            assert peer.recv(1) == b""  # Closed.
        rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)
        assert future.result() == ["127.0.0.1:7000", "127.0.0.1:7001"]


def test_a_recorded_greeting_is_refused(rank_0):
    future, port, environ = rank_0
    signature = rendezvous_module._sign("known", "rank", "an earlier nonce", "nonce", 1, 6666, 2)
    with connect(port) as peer:
        peer.sendall(json.dumps([1, 6666, 2, "nonce", signature]).encode() + b"\n")
        with peer.makefile("rb") as file:
            _, refusal = file  # Then it is closed.
        assert SECRET_VARIABLE in json.loads(refusal)[0]
    rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)
    assert future.result()[1] == "127.0.0.1:7001"


def trickle(peer, has_ended):
    """Sends a byte now and then, and no end of the line."""
    try:
        while not has_ended.wait(0.01):
            peer.sendall(b"1")
    except OSError:
        pass


def test_a_trickle_of_bytes_does_not_extend_the_deadline_of_rank_0():
    port = find_free_ports(1)[0]
    has_ended = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        future = threads.submit(rendezvous, f"127.0.0.1:{port}", 2, 0, 0.5)
        with connect(port) as peer:
            threads.submit(trickle, peer, has_ended)
            try:
                with pytest.raises(PeerLostError, match="rank 1 did not come"):
                    future.result(timeout=60)
            finally:
                has_ended.set()


def test_silent_connections_do_not_delay_the_ranks(rank_0):
    future, port, environ = rank_0
    with connect(port), connect(port), connect(port):
        rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)
        assert future.result()[1] == "127.0.0.1:7001"


def test_a_silent_connection_is_closed(rank_0, monkeypatch):
    monkeypatch.setattr(rendezvous_module, "_GREETING_TIME", 0.1)
    _, port, environ = rank_0
    with connect(port) as peer:
        read_line(peer)
        assert peer.recv(1) == b""
    rendezvous(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)


@pytest.mark.parametrize("answers_first", [False, True])
def test_a_trickle_of_bytes_does_not_extend_the_deadline_of_a_rank(monkeypatch, answers_first):
    monkeypatch.setattr(rendezvous_module, "_ANSWER_TIME", 0.1)
    has_ended = threading.Event()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        address = f"127.0.0.1:{server.getsockname()[1]}"
        future = threads.submit(rendezvous, address, 2, 1, 0.5)
        peer, _ = server.accept()
        with peer:
            if answers_first:
                peer.sendall(b'["nonce"]\n')
            threads.submit(trickle, peer, has_ended)
            try:
                with pytest.raises(PeerLostError, match="rank 0 did not come"):
                    future.result(timeout=60)
            finally:
                has_ended.set()


def test_addresses_of_a_rank_0_that_does_not_know_the_secret_are_not_taken():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ThreadPoolExecutor(1) as thread,
    ):
        address = f"127.0.0.1:{server.getsockname()[1]}"
        future = thread.submit(rendezvous, address, 2, 1, 0.5, 7001, {SECRET_VARIABLE: "known"})
        peer, _ = server.accept()
        with peer:
            peer.sendall(b'["nonce"]\n')
            read_line(peer)
            peer.sendall(b'[[[0, "127.0.0.1:1"], [1, "127.0.0.1:2"]], ""]\n')
            with pytest.raises(PeerLostError, match="A process listened there"):
                future.result(timeout=60)


def test_a_port_in_use_is_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InvalidInputError, match="Address already in use"),
    ):
        rendezvous(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)

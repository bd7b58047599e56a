import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.backend.processes import rendezvous
from keras_deepseek.backend.processes.rendezvous import SECRET_VARIABLE, meet
from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.launch.ports import find_free_ports


def meet_all(ranks, world_size, timeout, secrets=None):
    """Returns what each rank has found: the addresses of all, or an error's message."""
    address = f"127.0.0.1:{find_free_ports(1)[0]}"

    def come(rank):
        environ = {} if secrets is None else {SECRET_VARIABLE: secrets[rank]}
        try:
            return meet(address, world_size, rank, timeout, 7000 + rank, environ)
        except PeerLostError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(come, ranks))


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
    assert meet_all([3, 1, 0, 2], 4, timeout=30, secrets=secrets) == [addresses] * 4


def test_who_does_not_come_is_named_on_all_that_do():
    for message in meet_all([0, 2], 4, timeout=0.5):
        assert "for 4 processes; rank 1, 3 did not come" in message


def test_rank_0_is_named_too():
    assert "rank 0 did not come" in meet_all([1], 2, timeout=0.1)[0]


@pytest.mark.parametrize("secrets", [["one", "other"], ["one", ""], ["", "other"]])
def test_processes_with_different_secrets_do_not_meet(secrets):
    rank_0, rank_1 = meet_all([0, 1], 2, timeout=0.5, secrets=secrets)
    assert "rank 1 did not come" in rank_0
    assert "connections were refused" in rank_0
    assert "rank 0 did not come" in rank_1
    assert SECRET_VARIABLE in rank_1


@pytest.fixture
def rank_0():
    """A rank 0 of two that waits, its port, and the secret that it knows."""
    port = find_free_ports(1)[0]
    environ = {SECRET_VARIABLE: "known"}
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(meet, f"127.0.0.1:{port}", 2, 0, 30, 7000, environ), port, environ


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"[1]\n",
        b"1\n",
        b"",
        b"[" * 1000 + b"\n",
        b'[Infinity, 0, "", ""]\n',
        b'[1, 7009, "nonce", "\\ud800"]\n',
        b'[1, 7009, "nonce", "' + b"0" * 64 + b'"]\n',
        b"x" * 100_000,
    ],
)
def test_a_stranger_that_connects_changes_nothing(rank_0, said):
    found, port, environ = rank_0
    with connect(port) as peer:
        peer.sendall(said)
        assert meet(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ) == found.result()
    assert found.result() == ["127.0.0.1:7000", "127.0.0.1:7001"]


@pytest.mark.parametrize("secret", ["", "known"])
def test_no_peer_replaces_the_address_of_rank_0(secret):
    port = find_free_ports(1)[0]
    environ = {SECRET_VARIABLE: secret}
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(meet, f"127.0.0.1:{port}", 2, 0, 30, 7000, environ)
        with connect(port) as peer:
            (challenge,) = read_line(peer)
            signature = rendezvous._sign(secret or None, "rank", challenge, "nonce", 0, 6666)
            peer.sendall(json.dumps([0, 6666, "nonce", signature]).encode() + b"\n")
            assert peer.recv(1) == b""  # Closed.
        meet(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)
        assert found.result() == ["127.0.0.1:7000", "127.0.0.1:7001"]


def test_a_recorded_greeting_is_refused(rank_0):
    found, port, environ = rank_0
    signature = rendezvous._sign("known", "rank", "an earlier nonce", "nonce", 1, 6666)
    with connect(port) as peer:
        peer.sendall(json.dumps([1, 6666, "nonce", signature]).encode() + b"\n")
        read_line(peer)
        assert peer.recv(1) == b""
    meet(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)
    assert found.result()[1] == "127.0.0.1:7001"


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
        found = threads.submit(meet, f"127.0.0.1:{port}", 2, 0, 0.5)
        with connect(port) as peer:
            threads.submit(trickle, peer, has_ended)
            try:
                with pytest.raises(PeerLostError, match="rank 1 did not come"):
                    found.result(timeout=60)
            finally:
                has_ended.set()


def test_silent_connections_do_not_delay_the_ranks(rank_0):
    found, port, environ = rank_0
    with connect(port), connect(port), connect(port):
        meet(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)
        assert found.result()[1] == "127.0.0.1:7001"


def test_more_connections_than_rank_0_keeps_do_not_keep_a_rank_away(rank_0, monkeypatch):
    monkeypatch.setattr(rendezvous, "_MAX_PENDING", 2)
    found, port, environ = rank_0
    with connect(port) as oldest, connect(port), connect(port):
        read_line(oldest)
        assert oldest.recv(1) == b""
        meet(f"127.0.0.1:{port}", 2, 1, 30, 7001, environ)
        assert found.result()[1] == "127.0.0.1:7001"


@pytest.mark.parametrize("answers_first", [False, True])
def test_a_trickle_of_bytes_does_not_extend_the_deadline_of_a_rank(monkeypatch, answers_first):
    monkeypatch.setattr(rendezvous, "_ANSWER_TIME", 0.1)
    has_ended = threading.Event()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        address = f"127.0.0.1:{server.getsockname()[1]}"
        found = threads.submit(meet, address, 2, 1, 0.5)
        peer, _ = server.accept()
        with peer:
            if answers_first:
                peer.sendall(b'["nonce"]\n')
            threads.submit(trickle, peer, has_ended)
            try:
                with pytest.raises(PeerLostError, match="rank 0 did not come"):
                    found.result(timeout=60)
            finally:
                has_ended.set()


def test_addresses_of_a_rank_0_that_does_not_know_the_secret_are_not_taken():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ThreadPoolExecutor(1) as thread,
    ):
        address = f"127.0.0.1:{server.getsockname()[1]}"
        found = thread.submit(meet, address, 2, 1, 0.5, 7001, {SECRET_VARIABLE: "known"})
        peer, _ = server.accept()
        with peer:
            peer.sendall(b'["nonce"]\n')
            read_line(peer)
            peer.sendall(b'[[[0, "127.0.0.1:1"], [1, "127.0.0.1:2"]], ""]\n')
            with pytest.raises(PeerLostError, match="A process listened there"):
                found.result(timeout=60)


def test_a_port_in_use_is_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InvalidInputError, match="Address already in use"),
    ):
        meet(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)

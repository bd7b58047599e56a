import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.backend.processes.rendezvous import meet
from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.launch.ports import find_free_ports


def meet_all(ranks, world_size, timeout):
    """Returns what each rank has found: the addresses of all, or an error's message."""
    address = f"127.0.0.1:{find_free_ports(1)[0]}"

    def come(rank):
        try:
            return meet(address, world_size, rank, timeout, 7000 + rank)
        except PeerLostError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(come, ranks))


def test_processes_meet_in_any_order():
    addresses = [f"127.0.0.1:{7000 + rank}" for rank in range(4)]
    assert meet_all([3, 1, 0, 2], 4, timeout=30) == [addresses] * 4


def test_who_does_not_come_is_named_on_all_that_do():
    for message in meet_all([0, 2], 4, timeout=0.5):
        assert "for 4 processes, of which rank 1, 3 did not come" in message


def test_rank_0_is_named_too():
    assert "of which rank 0 did not come" in meet_all([1], 2, timeout=0.1)[0]


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[1]\n", b"1\n", b""])
def test_others_may_knock_at_the_port(said):
    port = find_free_ports(1)[0]
    with ThreadPoolExecutor(2) as threads:
        found = threads.submit(meet, f"127.0.0.1:{port}", 2, 0, 30)
        knocked = False
        while not knocked:
            try:
                with socket.create_connection(("127.0.0.1", port), 1.0) as peer:
                    peer.sendall(said)
                knocked = True
            except OSError:
                pass
        assert meet(f"127.0.0.1:{port}", 2, 1, 30) == found.result()


def test_a_port_in_use_is_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InvalidInputError, match="Address already in use"),
    ):
        meet(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)

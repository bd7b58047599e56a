import socket
from concurrent.futures import ThreadPoolExecutor

import keras
import pytest

from keras_deepseek.backend import current
from keras_deepseek.backend.processes.rendezvous import SECRET_VARIABLE
from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.launch.ports import find_free_ports

if keras.backend.backend() != "torch":
    pytest.skip("It is PyTorch's store.", allow_module_level=True)

from keras_deepseek.backend.torch.store import open_store


def open_all(starts, timeout):
    """Returns the store of each process, or the message of its error.

    `starts` has the rank and the world size of each.
    """
    address = f"127.0.0.1:{find_free_ports(1)[0]}"

    def come(start):
        rank, world_size = start
        try:
            return open_store(address, world_size, rank, timeout)
        except (PeerLostError, InvalidInputError) as error:
            return str(error)

    with ThreadPoolExecutor(len(starts)) as threads:
        return list(threads.map(come, starts))


def test_ranks_meet_in_any_order():
    stores = open_all([(2, 3), (0, 3), (1, 3)], timeout=30)
    stores[0].set("from rank 2", "here")
    assert [store.get("from rank 2") for store in stores] == [b"here"] * 3


def test_missing_ranks_are_named_on_all_that_come():
    for message in open_all([(0, 4), (2, 4)], timeout=0.5):
        assert "for 4 processes; rank 1, 3 did not come" in message


def test_a_missing_rank_0_is_named():
    assert "rank 0 did not come" in open_all([(1, 2)], timeout=0.1)[0]


def test_a_process_with_another_world_size_is_told_so():
    rank_0, rank_1 = open_all([(0, 2), (1, 3)], timeout=0.5)
    assert "rank 1 did not come" in rank_0
    assert "rank 1 was started with world_size=3, but rank 0 with world_size=2" in rank_1


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_one_of_two_processes_of_one_rank_is_told_so(num_ranks):
    _, *errors = open_all([(0, num_ranks), (1, num_ranks), (1, num_ranks)], timeout=0.5)
    assert sum("two processes were started as rank 1" in str(error) for error in errors) == 1


def test_a_stranger_that_connects_changes_nothing():
    port = find_free_ports(1)[0]
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(open_store, f"127.0.0.1:{port}", 2, 0, 30)
        while True:
            try:
                peer = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                pass
        with peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            open_store(f"127.0.0.1:{port}", 2, 1, 30).set("here", "yes")
            assert first.result().get("here") == b"yes"


def test_a_secret_that_is_not_used_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setenv(SECRET_VARIABLE, "known")
    for _ in range(2):
        with pytest.raises(PeerLostError, match="rank 0 did not come"):
            current().distribution.join_processes(
                f"127.0.0.1:{find_free_ports(1)[0]}", 2, 1, join_timeout=0.1, timeout=1.0
            )
    assert caplog.text.count(f"{SECRET_VARIABLE} is set, but PyTorch does not use it") == 1


def test_a_port_in_use_is_an_error():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InvalidInputError, match="Address already in use"),
    ):
        open_store(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)

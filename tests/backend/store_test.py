import socket
from concurrent.futures import ThreadPoolExecutor

import keras
import pytest

from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.launch.ports import find_free_ports

if keras.backend.backend() != "torch":
    pytest.skip("It is PyTorch's store.", allow_module_level=True)

from keras_deepseek.backend.torch.store import open_store


def open_all(ranks, world_size, timeout):
    """Returns the store of each rank, or the message of its error."""
    address = f"127.0.0.1:{find_free_ports(1)[0]}"

    def come(rank):
        try:
            return open_store(address, world_size, rank, timeout)
        except PeerLostError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(come, ranks))


def test_ranks_meet_in_any_order():
    stores = open_all([2, 0, 1], 3, timeout=30)
    stores[0].set("from rank 2", "here")
    assert [store.get("from rank 2") for store in stores] == [b"here"] * 3


def test_missing_ranks_are_named_on_all_that_come():
    for message in open_all([0, 2], 4, timeout=0.5):
        assert "for 4 processes; rank 1, 3 did not come" in message


def test_a_missing_rank_0_is_named():
    assert "rank 0 did not come" in open_all([1], 2, timeout=0.1)[0]


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


def test_a_port_in_use_is_an_error():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InvalidInputError, match="Address already in use"),
    ):
        open_store(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)

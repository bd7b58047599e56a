import keras
import pytest

from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.start_processes import start_processes
from keras_deepseek.training.launch.plan import find_free_ports


@pytest.fixture
def two(monkeypatch):
    if keras.backend.backend() == "tensorflow":  # The tests before have computed.
        from keras_deepseek.backend.tensorflow import distribution

        monkeypatch.setattr(distribution, "refuse_begun", lambda: None)
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    return [ClusterSpec("allreduce", 2, rank, coordinator=address) for rank in range(2)]


@pytest.mark.parametrize("strategy", [None, "allreduce"])
def test_one_process_waits_for_nobody(strategy):
    assert start_processes(ClusterSpec(strategy)).world_size == 1


def test_ranks_that_do_not_come_are_named(two, monkeypatch):
    monkeypatch.setenv("KERAS_DEEPSEEK_JOIN_TIMEOUT", "0.1")
    with pytest.raises(PeerLostError, match=r"for 2 processes; rank 1 did not come"):
        start_processes(two[0])


def test_rank_0_that_does_not_come_is_named(two, monkeypatch):
    monkeypatch.setenv("KERAS_DEEPSEEK_JOIN_TIMEOUT", "0.1")
    with pytest.raises(PeerLostError, match="rank 0 did not come"):
        start_processes(two[1])


def test_a_port_in_use_is_said(two):
    import socket

    host, port = two[0].coordinator.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(InvalidInputError, match="Address already in use"),
    ):
        start_processes(two[0])

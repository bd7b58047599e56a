import keras
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.cluster import ClusterSpec
from keras_deepseek.training.join_cluster import join_cluster, start_processes
from keras_deepseek.training.launch.ports import find_free_ports
from keras_deepseek.training.parameter_server.settings import ParameterServer


@pytest.fixture
def two(monkeypatch):
    if keras.backend.backend() == "tensorflow":  # The tests before have computed.
        from keras_deepseek.backend.tensorflow.processes import TensorFlowProcesses

        monkeypatch.setattr(TensorFlowProcesses, "refuse_begun", lambda: None)
    address = f"127.0.0.1:{find_free_ports(1)[0]}"
    return [ClusterSpec("allreduce", 2, rank, coordinator=address) for rank in range(2)]


@pytest.mark.parametrize("strategy", [None, "allreduce"])
def test_one_process_waits_for_nobody(strategy):
    assert start_processes(ClusterSpec(strategy)).world_size == 1


def test_the_strategy_of_the_launcher_is_the_default(monkeypatch):
    assert join_cluster(world_size=1, rank=0).strategy == "allreduce"
    monkeypatch.setenv("KERAS_DEEPSEEK_STRATEGY", "allreduce")
    assert join_cluster().strategy == "allreduce"
    monkeypatch.setenv("KERAS_DEEPSEEK_STRATEGY", "parameter_server")
    with pytest.raises(InvalidInputError, match="how many workers there are"):
        join_cluster()


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="There it connects.")
def test_workers_of_ray_are_joined_later():
    assert join_cluster(ParameterServer(num_workers=2)).strategy == "parameter_server"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="There Ray starts them.")
def test_tasks_are_joined_before_anything_is_computed():
    keras.Variable(0.0)
    with pytest.raises(InvalidInputError, match="Begin the script with"):
        join_cluster(ParameterServer(num_workers=2))


def test_ranks_that_do_not_come_are_named(two, monkeypatch):
    monkeypatch.setenv("KERAS_DEEPSEEK_JOIN_TIMEOUT", "0.1")
    with pytest.raises(PeerLostError, match=r"for 2 processes, of which rank 1 did not come"):
        start_processes(two[0])


def test_rank_0_that_does_not_come_is_named(two, monkeypatch):
    monkeypatch.setenv("KERAS_DEEPSEEK_JOIN_TIMEOUT", "0.1")
    with pytest.raises(PeerLostError, match="of which rank 0 did not come"):
        start_processes(two[1])


def test_a_port_in_use_is_said(two):
    import socket

    host, port = two[0].coordinator.split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(InvalidInputError, match="Address already in use"),
    ):
        start_processes(two[0])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="The others meet first.")
def test_tensorflow_that_has_computed_can_not_join():
    keras.optimizers.SGD()
    with pytest.raises(InvalidInputError, match=r"Begin the script with .*join_cluster\(\)"):
        join_cluster(world_size=2, rank=0, coordinator="127.0.0.1:29500")


def test_a_script_knows_its_rank():
    assert join_cluster(world_size=1, rank=0).rank == 0


def test_a_script_that_contradicts_itself_is_told_so():
    with pytest.raises(InvalidInputError, match="rank"):
        join_cluster(world_size=2, rank=2, coordinator="127.0.0.1:29500")

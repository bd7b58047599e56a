import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec

ADDRESS = "10.0.0.1:29500"


def test_one_process_is_the_default():
    cluster = ClusterSpec()
    assert (cluster.world_size, cluster.rank, cluster.local_rank) == (1, 0, 0)
    assert cluster.coordinator is None


def test_several_processes_have_a_place_each():
    cluster = ClusterSpec("allreduce", 8, 7, local_rank=3, coordinator="Node-1:29500")
    assert (cluster.world_size, cluster.rank, cluster.local_rank) == (8, 7, 3)
    assert cluster.coordinator == "node-1:29500"


def test_integers_of_numpy_become_python_s():
    cluster = ClusterSpec("allreduce", np.int64(2), np.int32(1), np.int8(1), ADDRESS)
    assert {type(cluster.world_size), type(cluster.rank), type(cluster.local_rank)} == {int}


def test_an_unknown_strategy_gets_the_nearest_name():
    with pytest.raises(InvalidInputError, match="did you mean 'allreduce'"):
        ClusterSpec("all_reduce")


@pytest.mark.parametrize(
    ("world_size", "rank", "message"),
    [
        (2, 2, "0 <= rank < world_size"),
        (1, 1, "0 <= rank < world_size"),
        (0, 0, "`world_size` must be a positive integer"),
        (True, 0, "`world_size` must be a positive integer"),
        (4, -1, "`rank` must be an integer of at least 0"),
        (4, 0.0, "`rank` must be an integer of at least 0"),
    ],
)
def test_a_rank_outside_of_the_world_is_refused(world_size, rank, message):
    with pytest.raises(InvalidInputError, match=message):
        ClusterSpec("allreduce", world_size, rank, coordinator=ADDRESS)


@pytest.mark.parametrize("local_rank", [2, -1, None])
def test_so_is_a_local_rank(local_rank):
    with pytest.raises(InvalidInputError, match="local_rank"):
        ClusterSpec("allreduce", 2, 0, local_rank, ADDRESS)


def test_several_processes_without_an_address_are_refused():
    with pytest.raises(InvalidInputError, match="2 processes need the address of ran"):
        ClusterSpec("allreduce", 2, 0)


def test_an_address_without_a_port_is_refused():
    with pytest.raises(InvalidInputError, match="`coordinator` must be HOST:PORT"):
        ClusterSpec("allreduce", 2, 0, coordinator="10.0.0.1")


@pytest.mark.parametrize("arguments", [{"world_size": 2}, {"coordinator": ADDRESS}])
def test_a_world_without_a_strategy_is_refused(arguments):
    with pytest.raises(InvalidInputError, match="needs a distributed_strategy"):
        ClusterSpec(**arguments)


def test_servers_and_strategy_fit_each_other():
    task = {"world_size": 2, "coordinator": ADDRESS, "task_type": "chief", "workers": (ADDRESS,)}
    with pytest.raises(InvalidInputError, match=r"names parameter servers \(10\.0\.0\.2:1\)"):
        ClusterSpec("allreduce", **task, servers=("10.0.0.2:1",))
    with pytest.raises(InvalidInputError, match="names no parameter server"):
        ClusterSpec("parameter_server", **task)
    assert ClusterSpec("parameter_server", **task, servers=("10.0.0.2:1",)).rank == 0

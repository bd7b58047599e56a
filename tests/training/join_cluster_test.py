import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.parameter_server import ParameterServer
from keras_deepseek.training.join_cluster import join_cluster


def test_the_strategy_of_the_launcher_is_the_default(monkeypatch):
    assert join_cluster(world_size=1, rank=0).strategy == "allreduce"
    monkeypatch.setenv("KERAS_DEEPSEEK_STRATEGY", "allreduce")
    assert join_cluster().strategy == "allreduce"
    monkeypatch.setenv("KERAS_DEEPSEEK_STRATEGY", "parameter_server")
    with pytest.raises(InvalidInputError, match="needs the number of workers"):
        join_cluster()


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="There it connects.")
def test_workers_of_ray_are_joined_later():
    assert join_cluster(ParameterServer(num_workers=2)).strategy == "parameter_server"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="There Ray starts them.")
def test_tasks_are_joined_before_anything_is_computed():
    keras.Variable(0.0)
    with pytest.raises(InvalidInputError, match="Begin the script with"):
        join_cluster(ParameterServer(num_workers=2))


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

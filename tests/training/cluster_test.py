import pytest

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training.cluster import ClusterSpec


def test_one_process_is_the_default():
    assert (ClusterSpec().world_size, ClusterSpec().rank) == (1, 0)


@pytest.mark.parametrize("strategy", ["allreduce", "parameter_server"])
def test_more_than_one_process_says_that_it_can_not_run_yet(strategy):
    with pytest.raises(NotSupportedError, match="can't run yet"):
        ClusterSpec(strategy, world_size=8, rank=0)


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
        ClusterSpec("allreduce", world_size, rank)


def test_a_world_without_a_strategy_is_refused():
    with pytest.raises(InvalidInputError, match="needs a distributed_strategy"):
        ClusterSpec(world_size=2)

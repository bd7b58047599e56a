import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.cluster_resolver import ClusterOptions


def test_a_process_trains_alone_unless_something_says_otherwise():
    resolved = ClusterOptions().resolve()
    assert (resolved.strategy, resolved.spec.world_size, resolved.servers) == (None, 1, None)
    assert ClusterOptions().resolve(default_strategy="allreduce").strategy == "allreduce"


def test_the_strategy_of_the_launcher_is_that_of_the_options(monkeypatch):
    monkeypatch.setenv("KERAS_DEEPSEEK_STRATEGY", "allreduce")
    assert ClusterOptions().resolve().strategy == "allreduce"
    assert ClusterOptions(world_size=1, rank=0).resolve().strategy is None


def test_options_that_contradict_each_other_are_refused():
    options = ClusterOptions(
        distributed_strategy="allreduce", world_size=2, rank=2, coordinator="127.0.0.1:29500"
    )
    with pytest.raises(InvalidInputError, match="rank"):
        options.resolve()

import types

import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.cluster_resolver import ClusterOptions
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.training_step import ONE_DEVICE
from keras_deepseek.training.training_cluster import TrainingCluster


def start(**options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")])
    model.compile("sgd", "mse")
    cluster = TrainingCluster(ClusterOptions(**options))
    trainer = types.SimpleNamespace(model=model)
    return cluster, cluster.start_workers(trainer, None, StepOptions(), None)


def test_a_process_without_a_strategy_trains_alone():
    cluster, parallelism = start()
    assert (cluster.processes.world_size, cluster.chief, cluster.residual) == (1, None, None)
    assert parallelism == ONE_DEVICE
    assert parallelism.is_compilable
    assert not parallelism.divides_batches
    assert not parallelism.uses_workers


def test_layers_on_their_own_devices_are_not_compiled():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX takes no devices of layers.")
    _, parallelism = start(device_map={"head": "cpu:0"})
    assert not parallelism.is_compilable
    assert not parallelism.divides_batches


def test_compression_needs_several_processes():
    with pytest.raises(InvalidInputError, match="only one process trains"):
        TrainingCluster(ClusterOptions(gradient_compression="bfloat16"))


def test_a_process_that_is_alone_keeps_the_whole_state(caplog):
    cluster, parallelism = start(shard_optimizer=True)
    assert (cluster.shards, parallelism.parts) == (None, None)
    assert "one process trains" in caplog.text


def test_sharding_is_a_choice_of_yes_or_no():
    with pytest.raises(InvalidInputError, match="shard_optimizer"):
        ClusterOptions(shard_optimizer="zero")

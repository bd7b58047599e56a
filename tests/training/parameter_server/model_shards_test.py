import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.parameter_server.messages import Shard
from keras_deepseek.training.parameter_server.model_shards import (
    ModelShards,
    kept_states,
    same_values,
    split_by_size,
)


def build_model():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, name="wide"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(2, name="narrow"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.1, loss_scale_factor=8.0, global_clipnorm=1.0))
    model.optimizer.build(model.trainable_variables)
    return model


def test_what_is_read_is_what_was_written():
    model, other = build_model(), build_model()
    for index, variable in enumerate([*model.variables, *model.optimizer.variables]):
        if variable.dtype == "float32":
            variable.assign(np.full(variable.shape, index + 1.0))
    values = ModelShards(model, 2).read(7)
    ModelShards(other, 2).write(values)
    assert same_values(ModelShards(other, 2).read(7), values) is False  # The rate is its own.
    other.optimizer.learning_rate = model.optimizer.learning_rate
    assert same_values(ModelShards(other, 2).read(7), values)
    assert [(shard_values.num_updates, shard_values.settled_below) for shard_values in values] == [
        (7, 7),
        (7, 7),
    ]


def test_a_worker_scales_no_loss_and_clips_by_the_norm_of_all():
    plan = ModelShards(build_model(), 1).plans()[0]
    assert plan.optimizer_config["loss_scale_factor"] is None
    assert plan.optimizer_config["global_clipnorm"] is None
    assert plan.variables[0].path.endswith("wide/kernel")
    assert [variable.shape for variable in plan.variables[:2]] == [(3, 8), (8,)]


def test_states_are_what_a_batch_leaves_in_layers():
    assert [state.name for state in kept_states(build_model())] == [
        "moving_mean",
        "moving_variance",
    ]


def test_more_servers_than_variables_are_refused():
    with pytest.raises(InvalidInputError, match="num_servers=9"):
        ModelShards(build_model(), 9)


def test_the_largest_are_spread_first():
    shards = split_by_size(list("abcd"), [10, 1, 8, 2], [], 2)
    assert shards == [Shard([0, 1], []), Shard([2, 3], [])]


def test_what_layers_keep_goes_where_there_is_room():
    assert split_by_size(list("ab"), [10, 1], [4, 2], 2) == [Shard([0], []), Shard([1], [0, 1])]


def test_variables_of_one_path_stay_together():
    shards = split_by_size(["a", "b", "a"], [5, 9, 5], [], 2)
    assert shards == [Shard([0, 2], []), Shard([1], [])]


def test_more_servers_than_paths_are_refused():
    with pytest.raises(InvalidInputError, match=r"num_servers=3, and the model has 2 trainable"):
        split_by_size(["a", "b", "a"], [1, 1, 1], [], 3)


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=40), st.integers(1, 3))
def test_each_is_held_once_and_no_shard_is_much_larger(sizes, num_shards):
    shards = split_by_size([str(index) for index in range(len(sizes))], sizes, [], num_shards)
    assert sorted(index for shard in shards for index in shard.variables) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in shard.variables) for shard in shards]
    assert all(shard.variables for shard in shards)
    assert max(loads) - min(loads) <= max(sizes)

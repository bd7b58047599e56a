import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.parameter_server.served_variables import (
    ServedVariables,
    kept_states,
    same_values,
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
    values = ServedVariables(model, 2).read(7)
    ServedVariables(other, 2).write(values)
    assert same_values(ServedVariables(other, 2).read(7), values) is False  # The rate is its own.
    other.optimizer.learning_rate = model.optimizer.learning_rate
    assert same_values(ServedVariables(other, 2).read(7), values)
    assert [(each.num_updates, each.settled_below) for each in values] == [(7, 7), (7, 7)]


def test_a_worker_scales_no_loss_and_clips_by_the_norm_of_all():
    plan = ServedVariables(build_model(), 1).plans()[0]
    assert plan.optimizer_config["loss_scale_factor"] is None
    assert plan.optimizer_config["global_clipnorm"] is None
    assert plan.variables[0].path.endswith("wide/kernel")
    assert [each.shape for each in plan.variables[:2]] == [(3, 8), (8,)]


def test_states_are_what_a_batch_leaves_in_layers():
    assert [each.name for each in kept_states(build_model())] == ["moving_mean", "moving_variance"]


def test_more_servers_than_variables_are_refused():
    with pytest.raises(InvalidInputError, match="num_servers=9"):
        ServedVariables(build_model(), 9)

"""Canaries: they fail when a Keras release moves a private name."""

import inspect

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.trainers import (
    changed_data_distribution,
    changed_steps,
    distribute_array,
    hold_state,
    read_state,
    trace_train_step,
    untracked_state,
    with_further_shardings,
)

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras on JAX has it.")
X, Y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_state_is_read_held_and_written_back():
    model = build()
    trainable, *other_state = read_state(model)
    hold_state(model, ([value + 1 for value in trainable], *other_state))
    kernel = np.asarray(trainable[0])
    model.jax_state_sync()
    np.testing.assert_array_equal(model.get_weights()[0], kernel + 1)


def test_only_the_state_of_a_step_is_not_searched_for_layers():
    model = build()
    with untracked_state(model):
        hold_state(model, read_state(model))
        model.settings = {"sizes": [1]}
    assert type(model._jax_state) is dict
    assert type(model.settings) is not dict
    hold_state(model, model._jax_state.values())
    assert type(model._jax_state) is not dict


def test_further_shardings_follow_those_of_the_metrics():
    model = build()
    number = len(model._get_state_sharding_spec()[-1])
    with with_further_shardings(model, lambda: ["own"]):
        shardings = model._get_state_sharding_spec()[-1]
    assert shardings[-1] == "own"
    assert len(shardings) == number + 1
    assert "_get_state_sharding_spec" not in vars(model)


def test_a_step_is_traced_and_creates_its_variables():
    class Own(keras.Sequential):
        def train_step(self, state, data):
            shapes.append(keras.tree.map_structure(lambda array: array.shape, data))
            return super().train_step(state, data)

    shapes = []
    model = Own([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    trace_train_step(model, (keras.KerasTensor((4, 2)), keras.KerasTensor((4, 1))))
    assert shapes == [((4, 2), (4, 1))]


def test_the_results_of_steps_are_changed():
    model, results = build(), []

    def note(result):
        results.append(result)
        return result

    with changed_steps(note):
        model.fit(X, Y, verbose=0)
    assert len(results) == 1
    build().fit(X, Y, verbose=0)
    assert len(results) == 1


def test_keras_places_a_batch_by_a_function_that_can_be_replaced():
    library = keras.src.backend.distribution_lib
    distribute = library.distribute_data_input
    assert list(inspect.signature(distribute).parameters) == [
        "per_process_batch",
        "layout",
        "batch_dim_name",
    ]
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    distribution = keras.distribution.DataParallel(device_mesh=mesh)
    with changed_data_distribution(lambda *arguments: arguments):
        array, _, name = distribute_array(X, distribution)
    assert array is X
    assert name == "batch"
    assert library.distribute_data_input is distribute

"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.optimizers import (
    count_update,
    exclude_from_decay,
    making_slots,
    optimized_variables,
    optimizer_recipe,
    uses_decay,
    weight_slots,
)


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_an_optimizer_knows_what_it_was_built_for():
    model = build()
    assert optimized_variables(model.optimizer) == model.trainable_variables
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "mse")
    assert optimized_variables(model.optimizer) is None


def test_an_optimizer_is_made_again_with_its_schedule_as_the_object_that_it_is():
    class Own(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.25

        def get_config(self):
            return {}

    schedule = Own()
    made, config = optimizer_recipe(keras.optimizers.Adam(schedule, beta_1=0.5))
    assert issubclass(made, keras.optimizers.Adam)  # On PyTorch it is one of its own.
    assert (config["beta_1"], config["learning_rate"]) == (0.5, schedule)
    again = made.from_config(config)
    assert float(again.learning_rate) == 0.25
    assert optimizer_recipe(keras.optimizers.SGD(0.5))[1]["learning_rate"] == 0.5


def test_a_variable_that_weight_decay_leaves_out_is_known():
    variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "bias")]
    by_name, by_itself = (keras.optimizers.AdamW(0.1) for _ in range(2))
    by_name.exclude_from_weight_decay(var_names=["bias"])
    exclude_from_decay(by_itself, variables[1:])
    for optimizer in (by_name, by_itself):
        assert [uses_decay(optimizer, each) for each in variables] == [True, False]


def test_an_update_without_gradients_is_counted():
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([keras.Variable(np.ones(2))])
    count_update(optimizer)
    assert int(optimizer.iterations) == 1


def make_weights():
    return [keras.Variable([[1.0, 2.0]], name="kernel"), keras.Variable([1.0], name="bias")]


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [
        ("SGD", {"momentum": 0.9}, 1),
        ("AdamW", {"use_ema": True, "amsgrad": True}, 4),
        ("Adam", {"gradient_accumulation_steps": 2}, 3),
        ("Muon", {}, 1),
    ],
)
def test_each_slot_is_found_with_its_weight(name, options, number):
    optimizer, weights = getattr(keras.optimizers, name)(**options), make_weights()
    optimizer.build(weights)
    found = weight_slots(optimizer)
    assert len(found) >= number * len(weights)
    assert all(tuple(slot.shape) == tuple(weight.shape) for slot, weight in found)
    shared = [each for each in optimizer.variables if id(each) not in {id(s) for s, _ in found}]
    assert {variable.name for variable in shared} <= {"iteration", "learning_rate"}


def test_a_function_makes_them_until_the_block_ends():
    optimizer, weights, made = keras.optimizers.Adam(), make_weights(), []

    def make(weight, make_slot):
        made.append((weight.name, make_slot()))
        return made[-1][1]

    with making_slots(optimizer, make):
        optimizer.build(weights)
    assert "add_variable_from_reference" not in vars(optimizer)
    assert {name for name, _ in made} == {"kernel", "bias"}
    assert {id(slot) for slot, _ in weight_slots(optimizer)} == {id(slot) for _, slot in made}

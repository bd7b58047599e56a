"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.optimizers import (
    adam_slots,
    count_update,
    current_learning_rate,
    exclude_from_decay,
    find_variables_again,
    has_fused_adam_step,
    making_slots,
    optimized_variables,
    optimizer_recipe,
    temporary_update,
    temporary_update_parts,
    uses_decay,
    variable_index,
    weight_slots,
)
from keras_deepseek.backend.keras_private.variables import set_raw_value


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


def test_an_optimizer_knows_the_position_of_a_variable():
    model = build()
    indices = [variable_index(model.optimizer, weight) for weight in model.trainable_variables]
    assert indices == [0, 1]
    inner = model.trainable_variables[1].value  # That is what an update gets on TensorFlow.
    if keras.backend.backend() == "tensorflow":
        assert variable_index(model.optimizer, inner) == 1


def test_an_optimizer_is_made_again_with_its_schedule_as_the_object_that_it_is():
    class Own(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.25

        def get_config(self):
            return {}

    schedule = Own()
    optimizer_class, config = optimizer_recipe(keras.optimizers.Adam(schedule, beta_1=0.5))
    assert issubclass(optimizer_class, keras.optimizers.Adam)  # On PyTorch it is one of its own.
    assert (config["beta_1"], config["learning_rate"]) == (0.5, schedule)
    again = optimizer_class.from_config(config)
    assert float(again.learning_rate) == 0.25
    assert optimizer_recipe(keras.optimizers.SGD(0.5))[1]["learning_rate"] == 0.5


def test_a_variable_that_weight_decay_leaves_out_is_known():
    variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "bias")]
    by_name, by_itself = (keras.optimizers.AdamW(0.1) for _ in range(2))
    by_name.exclude_from_weight_decay(var_names=["bias"])
    exclude_from_decay(by_itself, variables[1:])
    for optimizer in (by_name, by_itself):
        assert [uses_decay(optimizer, variable) for variable in variables] == [True, False]


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
    slots = weight_slots(optimizer)
    assert len(slots) >= number * len(weights)
    assert all(tuple(slot.shape) == tuple(weight.shape) for slot, weight in slots)
    shared = [
        variable
        for variable in optimizer.variables
        if id(variable) not in {id(s) for s, _ in slots}
    ]
    assert {variable.name for variable in shared} <= {"iteration", "learning_rate"}


def test_a_function_makes_them_until_the_block_ends():
    optimizer, weights, slots = keras.optimizers.Adam(), make_weights(), []

    def make(weight, make_slot):
        slots.append((weight.name, make_slot()))
        return slots[-1][1]

    with making_slots(optimizer, make):
        optimizer.build(weights)
    assert "add_variable_from_reference" not in vars(optimizer)
    assert {name for name, _ in slots} == {"kernel", "bias"}
    assert {id(slot) for slot, _ in weight_slots(optimizer)} == {id(slot) for _, slot in slots}


def test_the_rate_of_the_next_update_is_read():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.25])
    assert float(current_learning_rate(keras.optimizers.SGD(schedule))) == 0.5


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Others find them by identity.")
def test_an_optimizer_finds_a_variable_whose_inner_one_was_replaced():
    import tensorflow as tf

    weights = make_weights()
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(weights)
    set_raw_value(weights[1], tf.Variable([5.0]))
    find_variables_again(optimizer)
    optimizer.apply([keras.ops.zeros((1, 2)), keras.ops.ones((1,))], weights)
    assert float(weights[1].value[0]) == 4.0


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others have no parallel update.")
@pytest.mark.parametrize(("name", "is_adam"), [("Adam", True), ("AdamW", True), ("Nadam", False)])
def test_the_parallel_update_of_adam_is_known(name, is_adam):
    assert has_fused_adam_step(getattr(keras.optimizers, name)()) is is_adam


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_slots_of_adam_are_found(amsgrad):
    weights = make_weights()
    optimizer = keras.optimizers.Adam(amsgrad=amsgrad)
    optimizer.build(weights)
    groups = adam_slots(optimizer, weights[1:])
    assert [len(group) for group in groups] == [1, 1, int(amsgrad)]
    assert all("bias" in slot.path for group in groups for slot in group)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's folder calls it alone.")
def test_an_update_is_replaced_until_the_block_ends():
    weights, updates = make_weights(), []
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    optimizer.build(weights)
    gradients = [keras.ops.ones(weight.shape) for weight in weights]
    old_values = [keras.ops.convert_to_numpy(weight).copy() for weight in weights]
    attributes = {*vars(optimizer)}
    with temporary_update(optimizer, lambda *arguments: updates.append(arguments)):
        optimizer.apply(gradients, weights)
    for weight, value in zip(weights, old_values, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), value)
    ((_, variables, _),) = updates
    assert list(variables) == weights
    assert {*vars(optimizer)} == attributes


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's folder calls it alone.")
@pytest.mark.parametrize("name", ["Adam", "SGD", "Lamb"])
def test_the_parts_of_an_update_are_changed_until_the_block_ends(name):
    def change(function):
        def run(*arguments):
            functions.append(function)
            return function(*arguments)

        return run

    weights, functions = make_weights(), []
    optimizer = getattr(keras.optimizers, name)(weight_decay=0.1, clipnorm=1.0)
    optimizer.build(weights)
    clips = []

    def clip(by_keras, gradients):
        clips.append(len(gradients))
        return by_keras(gradients)

    with temporary_update_parts(optimizer, change, change, clip=clip):
        optimizer.apply([keras.ops.ones(weight.shape) for weight in weights], weights)
    assert len(functions) >= 2  # The decay, and the update.
    assert clips == [2]
    names = {"_apply_weight_decay", "_clip_gradients", "_parallel_update_step", "update_step"}
    assert not names & {*vars(optimizer)}

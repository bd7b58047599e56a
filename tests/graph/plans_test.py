"""Plans: which inputs share one, and what a whole call costs beside its program."""

import keras
import numpy as np
from keras import layers, ops

from keras_deepseek.backend.keras_private.layer_precision import read_policies
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.graph.plans import Plan, Plans


def make_model(*shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, layers.Dense(3)(layers.Add()(inputs) if inputs[1:] else inputs[0]))


def make_plan(model, *shapes):
    example = [keras.KerasTensor(shape) for shape in shapes]
    return Plan(model, example, training=False, passes=())


def test_sizes_that_are_free_may_change_and_others_may_not():
    plan = make_plan(make_model((None, 4)), (2, 5, 4))
    assert plan.fits([(7, 3, 4)])
    assert not plan.fits([(7, 3, 5)])


def test_tied_sizes_change_together():
    plan = make_plan(make_model((None, 4), (None, 4)), (2, 5, 4), (2, 5, 4))
    assert plan.fits([(3, 6, 4), (3, 6, 4)])
    assert not plan.fits([(3, 6, 4), (3, 7, 4)])
    assert not plan.fits([(3, 6, 4), (4, 6, 4)])


def test_inputs_of_one_kind_share_a_plan_and_sparse_ones_have_none():
    model = make_model((None, 4))
    plans = Plans(model, (), [keras.KerasTensor((2, 5, 4))])
    one = plans.make([keras.KerasTensor((2, 5, 4))], training=False)
    assert plans.make([keras.KerasTensor((3, 6, 4))], training=False) is one
    assert plans.make([keras.KerasTensor((3, 6, 4), "float16")], training=False) is not one
    assert plans.make([keras.KerasTensor((2, 5, 4))], training=True) is not one


def test_a_plan_made_for_symbols_runs_tensors():
    model = make_model((None, 4))
    plans = Plans(model, (), [keras.KerasTensor((2, 5, 4))])
    plans.make([keras.KerasTensor((2, 5, 4))], training=False)
    inputs = [ops.ones((2, 5, 4))]
    assert not plans.has_program(inputs, training=False)
    received = plans.run(inputs, training=False, otherwise=lambda: None)
    np.testing.assert_allclose(
        ops.convert_to_numpy(received), ops.convert_to_numpy(model(inputs)), rtol=1e-6
    )
    assert plans.has_program(inputs, training=False)


def test_the_policies_of_layers_are_read():
    """A canary: it fails when a Keras release moves a private name."""
    model = make_model((4,))
    policies = [layer.dtype_policy for layer in flatten_layers(model)]
    assert list(read_policies(flatten_layers(model))) == policies

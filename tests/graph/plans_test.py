"""Plans: which inputs share one, and what a whole call costs beside its program."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.backend.keras_private.layer_precision import PolicyKey
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.graph.optimized_model import OptimizedModel
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


def test_equal_lengths_of_the_example_may_differ_if_the_model_takes_that():
    text, image = keras.Input((None, 4)), keras.Input((None, 4))
    model = keras.Model([text, image], layers.MultiHeadAttention(2, 3)(text, image))
    plan = make_plan(model, (2, 5, 4), (2, 5, 4))
    assert plan.fits([(3, 6, 4), (3, 9, 4)])
    assert str(plan.axes[0]) == "axis 0 of input 0 and axis 0 of input 1"
    inputs = [ops.ones((3, 6, 4)), ops.ones((3, 9, 4))]
    np.testing.assert_allclose(
        ops.convert_to_numpy(plan.program(inputs)), ops.convert_to_numpy(model(inputs)), atol=1e-6
    )


def test_inputs_of_one_kind_share_a_plan_and_sparse_ones_have_none():
    model = make_model((None, 4))
    plans = Plans(model, (), [keras.KerasTensor((2, 5, 4))])
    plan = plans.make([keras.KerasTensor((2, 5, 4))], training=False)
    assert plans.make([keras.KerasTensor((3, 6, 4))], training=False) is plan
    assert plans.make([keras.KerasTensor((3, 6, 4), "float16")], training=False) is not plan
    assert plans.make([keras.KerasTensor((2, 5, 4))], training=True) is not plan


@pytest.mark.torch_alone
def test_symbolic_sizes_run_the_program_of_the_example():
    torch = pytest.importorskip("torch")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    optimized = OptimizedModel(model, keras.KerasTensor((8, 4)), passes=["identities"])
    sizes = (({0: torch.export.Dim("batch")},),)
    exported = torch.export.export(optimized.eval(), (torch.ones(8, 4),), dynamic_shapes=sizes)
    x = torch.ones(3, 4)
    np.testing.assert_allclose(
        ops.convert_to_numpy(exported.module()(x)), ops.convert_to_numpy(model(x)), rtol=1e-6
    )
    assert None not in optimized._plans._plans.values()


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


def test_a_layer_that_is_frozen_later_has_another_program():
    inputs = keras.Input((4,))
    norm = layers.BatchNormalization()
    model = keras.Model(inputs, norm(inputs))
    plans = Plans(model, (), keras.KerasTensor((8, 4)))
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(3, 2, (8, 4)).astype("float32"))
    for is_trainable in (False, True, False):
        norm.trainable = is_trainable
        received = ops.convert_to_numpy(plans.run(x, training=True, otherwise=lambda: None))
        assert (abs(received.mean()) < 1e-3) == is_trainable  # By the statistics of the batch.


class Meeting(layers.Layer):
    """Replicas of one step wait for each other inside a layer, as in synchronized statistics."""

    barrier = threading.Barrier(1)

    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("This layer is kept whole.")
        self.barrier.wait()
        return inputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


@pytest.mark.torch_alone
def test_threads_may_wait_for_each_other_in_a_first_run():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Meeting()(inputs))
    plans = Plans(model, (), keras.KerasTensor((8, 4)))
    plans.prove(ops.ones((8, 4)), training=False)
    Meeting.barrier = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(plans.run, ops.ones((8, 4)), False, lambda: None) for _ in "ab"]
        assert all(future.result() is not None for future in futures)


def test_policies_of_layers_are_told_apart_by_a_key():
    """A canary: it fails when a Keras release moves a private name."""
    model = make_model((4,))
    keys = []
    for policy in ("float32", "mixed_bfloat16", "float32"):
        model.layers[-1].dtype_policy = policy
        keys.append(PolicyKey(flatten_layers(model)))
    assert hash(keys[0]) == hash(keys[2])
    assert keys[0] == keys[2] != keys[1]

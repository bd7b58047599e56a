"""The parts of one of several processes, that are asked without their peers."""

import functools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.artifacts.divided_array import StoredArray
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training.step.gradients.optimizer_parts import (
    OptimizerParts,
    common_variables,
)


def build():
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(5, kernel_constraint="non_neg")
    return keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(2)])


def prepare(optimizer, model=None, rank=1, world_size=3, by_weight=False):
    model = model or build()
    model.compile(optimizer, "mse")
    replicas = SimpleNamespace(share_parts=lambda *_: None)
    processes = SimpleNamespace(rank=rank, world_size=world_size)
    parts = OptimizerParts(processes, replicas)
    parts.prepare(model, by_weight=by_weight)
    return model, parts


def test_a_process_has_the_state_of_its_part():
    model, parts = prepare(keras.optimizers.AdamW(0.1))
    shapes = [tuple(part.shape) for part in parts.variables]
    assert shapes == [(5,), (2,), (4,), (1,)]
    kernel = ops.convert_to_numpy(model.layers[0].kernel).reshape(-1)
    np.testing.assert_array_equal(ops.convert_to_numpy(parts.variables[0]), kernel[5:10])
    assert sum(int(np.prod(slot.shape)) for slot in model.optimizer.variables) == 2 + 2 * 12
    assert len(common_variables(model)) == len(model.variables) + 2


def test_the_decay_leaves_out_what_it_would_of_whole_weights():
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    _, parts = prepare(optimizer)
    before = [ops.convert_to_numpy(part) for part in parts.variables]
    optimizer.apply([ops.zeros(part.shape) for part in parts.variables], parts.variables)
    factors = [1 - 0.1 * 0.5, 1.0, 1 - 0.1 * 0.5, 1.0]
    for part, value, factor in zip(parts.variables, before, factors, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(part), factor * value, rtol=1e-6)


def test_weights_that_were_changed_outside_are_updated():
    model, parts = prepare("sgd")
    model.layers[1].bias.assign([3.0, 4.0])
    parts.take()
    np.testing.assert_array_equal(ops.convert_to_numpy(parts.variables[-1]), [4.0])


@pytest.mark.parametrize("name", ["Muon", "Lamb", "Adafactor"])
def test_an_optimizer_of_matrices_has_whole_weights(name):
    _, parts = prepare(getattr(keras.optimizers, name)())
    whole = [tuple(weight.shape) for weight in build().trainable_variables]
    assert {tuple(part.shape) for part in parts.variables} <= set(whole)


@pytest.mark.parametrize("by_weight", [False, True], ids=["slices", "weights"])
def test_the_pieces_of_all_are_the_state_of_one_process(by_weight):
    values = []
    for rank in range(3):
        model, parts = prepare(keras.optimizers.Adam(0.1), rank=rank, by_weight=by_weight)
        parts.take()
        optimizer = model.optimizer
        optimizer.apply([part + 1.0 for part in parts.variables], parts.variables)
        values.append((model, parts, _arrays(optimizer)))
    alone = build()
    alone.compile(keras.optimizers.Adam(0.1), "mse")
    weights = alone.trainable_variables
    alone.optimizer.apply([weight + 1.0 for weight in weights], weights)
    states = [list(parts.read_state(model)) for model, parts, _ in values]
    stored = [_store(number, states) for number in range(len(states[0]))]
    for received, expected in zip(stored, _arrays(alone.optimizer), strict=True):
        np.testing.assert_allclose(np.asarray(received), expected, rtol=1e-6)
    for whole in (stored, [np.asarray(value) for value in stored]):
        for model, parts, own_values in values:
            for received, expected in zip(parts.cut_state(model, whole), own_values, strict=True):
                np.testing.assert_array_equal(np.asarray(received), expected)


def _store(number, states):
    """The value of a variable, from those of all ranks, as a checkpoint returns it."""
    values = [state[number] for state in states]
    if isinstance(values[0], np.ndarray):  # It belongs to no weight.
        return values[0]
    pieces = [
        (box, functools.partial(np.copy, piece)) for value in values for box, piece in value.pieces
    ]
    (shape,) = {value.shape for value in values if value.pieces}
    return StoredArray(shape, np.dtype(values[0].dtype), pieces, "The state")


def _arrays(optimizer):
    return [ops.convert_to_numpy(variable.value) for variable in optimizer.variables]


def test_the_norms_of_parts_are_summed_to_those_of_weights():
    squares = []
    for rank in range(3):
        model, parts = prepare(keras.optimizers.Adam(0.1), rank=rank)
        parts.replicas.add_up = lambda square: squares.append(square) or square
        norms = [ops.norm(part.value) for part in parts.variables]
        parts.sum_norms(ops.stack(norms), parts.variables)
    total = np.sqrt(sum(map(ops.convert_to_numpy, squares)))
    expected = [np.linalg.norm(ops.convert_to_numpy(w)) for w in model.trainable_variables]
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    empty = parts.sum_norms(ops.zeros((0,)), [])  # A process without parts.
    assert ops.convert_to_numpy(empty).tolist() == [0.0] * 4


def test_a_saved_model_can_be_loaded_without_the_state(tmp_path):
    model, _ = prepare("adam")
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for weight, expected in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), ops.convert_to_numpy(expected))


def test_weights_must_not_be_frozen_afterwards():
    model, parts = prepare("adam")
    parts.check_weights(model)
    model.layers[0].trainable = False
    with pytest.raises(InvalidInputError, match="frozen or unfrozen"):
        parts.check_weights(model)


class Shared(keras.optimizers.SGD):
    """An optimizer with a number that depends on all gradients."""

    def build(self, variables):
        super().build(variables)
        self.distance = self.add_variable((), name="distance")


class Normalized(keras.optimizers.SGD):
    """An optimizer that divides gradients by the norm of all of them."""

    def apply(self, grads, trainable_variables=None):
        norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in grads))
        super().apply([gradient / norm for gradient in grads], trainable_variables)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.optimizers.Adam(global_clipnorm=1.0), "gradient_clip=.'global_norm', 1.0"),
        (Shared, "its variables distance belong to no single weight"),
        (Normalized, r"Normalized: its own apply\(\) would get the gradients of this process's"),
        (lambda: keras.optimizers.LossScaleOptimizer(Normalized()), r"its own apply\(\)"),
    ],
    ids=["global_clipnorm", "a shared state", "own apply", "own apply below a loss scale"],
)
def test_what_can_not_be_sharded_is_refused(make, message):
    with pytest.raises((InvalidInputError, NotSupportedError), match=message):
        prepare(make())


def test_a_model_must_be_built_and_its_optimizer_new():
    with pytest.raises(InvalidInputError, match="not built yet"):
        prepare("adam", keras.Sequential([keras.layers.Dense(2)]))
    optimizer = keras.optimizers.Adam()
    model = build()
    optimizer.build(model.trainable_variables)
    with pytest.raises(InvalidInputError, match="Pass a new optimizer"):
        prepare(optimizer, model)

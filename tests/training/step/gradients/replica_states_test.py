import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.training.step.gradients.replica_states import ReplicaStates

RNG = np.random.default_rng(0)


def build():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=2)]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(np.ones((2, 64)), np.ones((2, 64)), verbose=0)  # So that the metrics have variables.
    model.reset_metrics()
    return model


def step(model, rank, x):
    """Returns what a replica has changed, and its random numbers."""
    states = ReplicaStates(model)
    with states.replica_seeds(rank):
        outputs = model(x, training=True)
    model.metrics[1].update_state(x, outputs)
    return (
        states,
        states.changes(ops.convert_to_tensor(float(len(x)))),
        ops.convert_to_numpy(outputs) == 0,
    )


def test_replicas_agree_after_a_step():
    models, parts = [build(), build()], [RNG.normal(size=(3, 64)), RNG.normal(size=(1, 64))]
    old_mean = ops.convert_to_numpy(models[0].layers[0].moving_mean)
    steps = [step(model, rank, parts[rank]) for rank, model in enumerate(models)]
    replica_means = [ops.convert_to_numpy(model.layers[0].moving_mean) for model in models]
    sums = [
        first_change + second_change
        for first_change, second_change in zip(steps[0][1], steps[1][1], strict=True)
    ]
    for states, _, _ in steps:
        states.write(sums, ops.convert_to_tensor(4.0))
    for first_variable, second_variable in zip(
        models[0].variables, models[1].variables, strict=True
    ):
        np.testing.assert_array_equal(first_variable, second_variable, err_msg=first_variable.path)
    mean = ops.convert_to_numpy(models[0].layers[0].moving_mean)
    np.testing.assert_allclose(
        mean, old_mean + (3 * (replica_means[0] - old_mean) + replica_means[1] - old_mean) / 4, 1e-5
    )
    expected = build()
    for part in parts:
        expected.metrics[1].update_state(part, np.zeros_like(part))
    for model in models:
        counts = [
            metric.count for metric in (*model.metrics[1].metrics, *expected.metrics[1].metrics)
        ]
        assert float(counts[0]) == float(counts[1])


def test_random_numbers_differ_by_replica_and_are_the_same_for_the_same_seed():
    x = np.ones((1, 64))
    zeros = [step(build(), rank, x)[2] for rank in (0, 1, 2, 1)]
    assert not np.array_equal(zeros[0], zeros[1])
    assert not np.array_equal(zeros[1], zeros[2])
    np.testing.assert_array_equal(zeros[1], zeros[3])


class Count(keras.layers.Layer):
    """Keeps how many rows it has seen last, unless it sees none that is positive."""

    def build(self, input_shape):
        self.seen = self.add_weight(initializer="ones", trainable=False, aggregation="sum")

    def call(self, inputs):
        number = ops.cast(ops.sum(inputs[:, 0] > 0), "float32")
        self.seen.assign(ops.where(number > 0, number, self.seen.value))
        return inputs


@pytest.mark.parametrize(("rows", "expected"), [((3, 2, 0), 5.0), ((0, 0, 0), 1.0)])
def test_variables_with_sum_aggregation_are_summed(rows, expected):
    models, changes = [], []
    for number in rows:
        model = keras.Sequential([keras.Input((4,)), Count()])
        model.compile("sgd", "mse")
        states = ReplicaStates(model)
        model(np.ones((number or 1, 4)) if any(rows) else -np.ones((2, 4)), training=True)
        models.append((model, states))
        present = ops.convert_to_tensor(float(number if any(rows) else 2))
        changes.append(states.changes(present))
    sums = [sum(parts) for parts in zip(*changes, strict=True)]
    for model, states in models:
        states.write(sums, ops.convert_to_tensor(5.0))
        assert float(model.layers[0].seen) == expected


def test_a_replica_without_rows_changes_nothing():
    model = build()
    states = ReplicaStates(model)
    model(np.full((1, 64), np.nan), training=True)
    changes = states.changes(ops.convert_to_tensor(0.0))
    assert all(not np.any(ops.convert_to_numpy(change)) for change in changes)

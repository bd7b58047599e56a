import keras
import numpy as np
import pytest

from keras_deepseek.training.parameter_server.model_shards import ModelShards
from keras_deepseek.training.parameter_server.remote_model import RemoteModel
from tests.oracles.eager_tasks import EagerTasks


@pytest.fixture
def served():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()]
    )
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.optimizer.build(model.trainable_variables)
    return ModelShards(model, 2)


def make(served, frozen=()):
    return RemoteModel(
        EagerTasks(), served.plans(), served.shards, served.read(0), list(frozen), num_slots=2
    )


def write(remote, values):
    for server, shard_values in enumerate(values):
        remote.write(server, shard_values)


def test_weights_and_states_come_in_the_order_of_the_model(served):
    remote = make(served, [np.arange(3.0, dtype="float32")])
    write(remote, served.read(0))
    weights, states, frozen = remote.pull()
    assert [tuple(weight.shape) for weight in weights] == [(3, 2), (2,), (2,), (2,)]
    assert [tuple(state.shape) for state in states] == [(2,), (2,)]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(frozen[0]), np.arange(3.0))


def test_an_update_takes_what_is_in_its_slot_and_leaves_the_others(served):
    remote = make(served)
    write(remote, served.read(0))
    old_weights = [keras.ops.convert_to_numpy(weight) for weight in remote.pull()[0]]
    for slot, scale in ((0, 1.0), (1, 10.0)):
        gradients = [scale * np.ones(weight.shape, "float32") for weight in old_weights]
        remote.push(slot, [*gradients[:-1], None], [np.full(2, scale), np.full(2, scale)])
    remote.update(1, rate=0.25)
    weights, states, _ = remote.pull()
    for weight, was in list(zip(weights, old_weights, strict=True))[:-1]:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), was - 2.5, rtol=1e-6)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(weights[-1]), old_weights[-1])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(states[0]), 10.0)  # A mean, of 0.
    remote.update(0, rate=None)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(remote.pull()[0][0]), old_weights[0] - 2.75, rtol=1e-6
    )


def test_what_is_read_can_be_written(served):
    remote = make(served)
    values = served.read(5)
    for shard_values in values:
        shard_values.weights[0] = shard_values.weights[0] + 1
        shard_values.optimizer[0] = np.array(5)
    write(remote, values)
    read_values = [remote.read(server) for server in range(2)]
    for written, received in zip(values, read_values, strict=True):
        np.testing.assert_array_equal(written.weights[0], received.weights[0])
        assert int(received.optimizer[0]) == 5
        assert (received.num_updates, received.settled_below) == (5, 5)

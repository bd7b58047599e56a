import keras
import numpy as np

from keras_deepseek.training.parameter_server.messages import ShardPlan, VariablePlan
from keras_deepseek.training.parameter_server.shard_variables import ShardVariables


def make(**config):
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5, **config)
    rows = [
        VariablePlan("dense/kernel", (2, 2), "float32", keras.constraints.NonNeg(), decays=True),
        VariablePlan("dense/bias", (2,), "float32", None, decays=False),
    ]
    return ShardVariables(ShardPlan(rows, keras.optimizers.AdamW, optimizer.get_config()))


def test_they_are_what_the_plan_says():
    shard = make()
    assert [weight.path for weight in shard.weights] == ["dense/kernel", "dense/bias"]
    assert [tuple(weight.shape) for weight in shard.weights] == [(2, 2), (2,)]
    assert len(shard.optimizer.variables) == 6


def test_an_update_heeds_constraints_and_what_does_not_decay():
    shard = make()
    for weight in shard.weights:
        weight.assign(np.ones(weight.shape, "float32"))
    zeros = [keras.ops.zeros(weight.shape) for weight in shard.weights]
    shard.update(zeros)
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in shard.weights)
    np.testing.assert_allclose(kernel, 0.95)
    np.testing.assert_allclose(bias, 1.0)
    shard.update([100 * keras.ops.ones((2, 2)), zeros[1]])
    shard.weights[0].assign(np.full((2, 2), 0.01, "float32"))
    shard.update([keras.ops.ones((2, 2)), zeros[1]])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(shard.weights[0]), 0.0)


def test_an_update_without_a_gradient_is_counted():
    shard = make()
    shard.update([None, None])
    assert int(shard.optimizer.iterations) == 1

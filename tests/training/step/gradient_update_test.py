import keras
import numpy as np
import pytest

from keras_deepseek.training.step.gradient_update import GradientUpdate
from keras_deepseek.training.step.step_options import StepOptions


def make(optimizer):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, "mse")
    model.optimizer.build(model.trainable_variables)
    return model, GradientUpdate(model, StepOptions(gradient_clip=("global_norm", 1.0)), None, None)


@pytest.mark.parametrize("is_finite", [True, False])
def test_the_residual_is_kept_only_with_an_update(is_finite):
    if keras.backend.backend() == "jax":
        pytest.skip("Between processes JAX rounds nothing, and keeps nothing.")
    model, update = make(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0)))
    scale = float(keras.ops.convert_to_numpy(model.optimizer.dynamic_scale))
    old_weights = model.get_weights()[0]
    residual = keras.Variable(0.0, trainable=False)
    gradient = np.array([[3.0 * scale], [4.0 * scale if is_finite else np.inf]], "float32")
    is_good, logs = update(
        keras.ops.ones(()),
        [keras.ops.convert_to_tensor(gradient)],
        model.trainable_variables,
        lambda: residual.assign(1.0),
    )
    assert bool(is_good) == is_finite
    assert float(keras.ops.convert_to_numpy(residual.value)) == float(is_finite)
    moved = old_weights - model.get_weights()[0]
    np.testing.assert_allclose(moved, [[0.6], [0.8]] if is_finite else [[0.0], [0.0]], atol=1e-6)
    now = float(keras.ops.convert_to_numpy(model.optimizer.dynamic_scale))
    assert now == (scale if is_finite else scale / 2)
    assert np.isclose(float(logs["gradient_norm"]), 5.0) == is_finite

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.training import Trainer
from keras_deepseek.training.parameter_server.gradient_step import GRADIENTS, take_gradient_step
from keras_deepseek.training.step.step_options import StepOptions

X = np.arange(12, dtype="float32").reshape(6, 2) / 10
Y = np.arange(6, dtype="float32").reshape(6, 1)


def compute_gradients(clip=None, global_clipnorm=None, micro_batches=1):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones", name="used")]
    )
    model.compile(keras.optimizers.SGD(0.0), loss="mse", auto_scale_loss=False)
    trainer = Trainer(model)
    model.train_step, _ = take_gradient_step(
        trainer,
        {
            "options": StepOptions(micro_batches=micro_batches, gradient_clip=clip),
            "policy": None,
            "global_clipnorm": global_clipnorm,
        },
    )
    model.make_train_function()
    logs = backend.current().step.run_step(model, (X, Y))
    gradients = [keras.ops.convert_to_numpy(gradient) for gradient in logs.pop(GRADIENTS)]
    return gradients, {name: float(value) for name, value in logs.items()}


def expected():
    error = 2 * (X.sum(axis=1, keepdims=True) - Y) / len(X)
    return [X.T @ error, error.sum(axis=0)]


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_gradients_are_those_of_the_batch(micro_batches):
    gradients, logs = compute_gradients(micro_batches=micro_batches)
    for received, reference in zip(gradients, expected(), strict=True):
        np.testing.assert_allclose(received, reference, rtol=1e-5)
    assert logs == {"loss": pytest.approx(np.mean((X.sum(axis=1, keepdims=True) - Y) ** 2))}


@pytest.mark.parametrize("is_own", [True, False])
def test_the_norm_of_all_is_clipped_where_all_are(is_own):
    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in expected()))
    gradients, logs = compute_gradients(
        **({"clip": ("global_norm", 0.5)} if is_own else {"global_clipnorm": 0.5})
    )
    for received, reference in zip(gradients, expected(), strict=True):
        np.testing.assert_allclose(received, reference * 0.5 / norm, rtol=1e-5)
    assert logs.get("gradient_norm") == (pytest.approx(norm, rel=1e-5) if is_own else None)

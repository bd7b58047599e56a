import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.layers.heads.token_losses import (
    average_losses,
    compute_token_losses,
    differentiate_token_losses,
)
from keras_deepseek.testing import assert_close
from tests.oracles import cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 7)).astype("float32")
TARGETS = RNG.integers(0, 7, (2, 3)).astype("int32")


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_losses_are_those_of_the_formula(z_loss):
    losses = keras.ops.convert_to_numpy(compute_token_losses(LOGITS, TARGETS, z_loss))
    assert_close(losses, cross_entropy.token_losses(LOGITS, TARGETS, z_loss=z_loss))


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_gradient_is_that_of_the_losses(z_loss):
    upstream = RNG.normal(size=(2, 3)).astype("float32")
    gradient = differentiate_token_losses(LOGITS, TARGETS, upstream, z_loss)

    def total(logits):
        losses = compute_token_losses(logits, TARGETS, z_loss)
        return keras.ops.sum(keras.ops.multiply(losses, upstream))

    ((expected,), _) = backend.current().compute.compute_gradients(total, [LOGITS], [])
    assert_close(keras.ops.convert_to_numpy(gradient), expected)


def test_half_precision_is_left_for_the_loss():
    losses = compute_token_losses(keras.ops.cast(LOGITS, "bfloat16"), TARGETS)
    assert keras.backend.standardize_dtype(losses.dtype) == "float32"


def test_large_logits_stay_finite():
    losses = compute_token_losses(np.array([[1e4, -1e4]], "float32"), np.array([1]))
    assert_close(keras.ops.convert_to_numpy(losses), [2e4])


def test_the_mean_is_over_the_weights_and_zero_without_any():
    losses, weights = np.array([1.0, 3.0, 9.0], "float32"), np.array([0.5, 1.5, 0.0], "float32")
    assert float(average_losses(losses, weights)) == pytest.approx(2.5)
    assert float(average_losses(losses, 0 * weights)) == 0.0

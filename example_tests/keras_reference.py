"""A training that is killed in the middle of an epoch, and what it must be equal to."""

import keras
import numpy as np


class KilledError(Exception):
    """Stands for the end of the process."""


class KillAt(keras.callbacks.Callback):
    """Ends a training in the middle of an epoch."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise KilledError


def assert_same(one, other, tolerance=0.0):
    """Compares the weights of two models: to the bit, unless a tolerance is given."""
    for each, expected in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(each, expected, rtol=tolerance, atol=tolerance)

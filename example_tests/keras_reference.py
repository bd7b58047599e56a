"""References for a training: that of Keras, and one that nothing has ended."""

import keras
import numpy as np


def assert_same(one, other, tolerance=0.0):
    """Compares the weights of two models: to the bit, unless a tolerance is given."""
    for each, expected in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(each, expected, rtol=tolerance, atol=tolerance)


def add_sparse_gradients_up(optimizer):
    """Lets Keras's optimizer do what `docs/explanation/training_step.md` says that ours does.

    On TensorFlow it squares each part of an embedding's gradient before it adds them.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        apply = optimizer.apply
        optimizer.apply = lambda gradients, variables=None: apply(
            [*map(tf.convert_to_tensor, gradients)], variables
        )

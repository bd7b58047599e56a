"""References for a training: that of Keras, and one that nothing has ended."""

import keras
import numpy as np


def assert_same(model, expected_model, tolerance=0.0):
    """Compares the weights of two models: to the bit, unless a tolerance is given."""
    for weight, expected in zip(model.get_weights(), expected_model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=tolerance, atol=tolerance)


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

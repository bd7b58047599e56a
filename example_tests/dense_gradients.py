"""Keras's optimizers, without what sets them apart from ours on TensorFlow."""

import keras


def add_sparse_gradients_up(optimizer):
    """Lets Keras's optimizer do what `docs/training.md` says that ours does.

    On TensorFlow it squares each part of an embedding's gradient before it adds them.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        apply = optimizer.apply
        optimizer.apply = lambda gradients, variables=None: apply(
            [*map(tf.convert_to_tensor, gradients)], variables
        )

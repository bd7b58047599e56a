"""Memory that ran out on TensorFlow."""

import gc

import tensorflow as tf


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory of a device, or the machine's, ran out."""
    return isinstance(error, MemoryError | tf.errors.ResourceExhaustedError) or (
        isinstance(error, tf.errors.InternalError) and "out of memory" in str(error).lower()
    )


def release_memory() -> None:
    """Gives back the memory that nothing uses and that the framework holds in reserve."""
    gc.collect()  # TensorFlow keeps what it has once taken, for what comes next.

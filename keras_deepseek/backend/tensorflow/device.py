"""Which devices TensorFlow sees."""

import tensorflow as tf


def count_devices(kind: str) -> int:
    """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""
    return len(tf.config.list_logical_devices(kind.upper()))

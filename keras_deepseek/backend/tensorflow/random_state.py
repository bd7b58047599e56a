"""The random number generators that TensorFlow shares."""

import random

import tensorflow as tf

from keras_deepseek.artifacts.signature import Array


def draw_seed() -> int:
    """Returns a seed for the order of data, by what Keras's users seed that order with."""
    return random.getrandbits(31)


def read_framework_random_state() -> dict[str, Array]:
    """Returns the state of the framework's own shared generators, as a copy."""
    # The operations of `tf.random` without a generator keep theirs where nobody can read it;
    # Keras uses none of them.
    return {"generator": tf.random.get_global_generator().state.numpy().copy()}


def write_framework_random_state(state: dict[str, Array]) -> None:
    """Puts the framework's own shared generators into a state that was read before."""
    tf.random.get_global_generator().state.assign(state["generator"])

"""The random number generators that JAX shares."""

import random

from keras_deepseek.artifacts.signature import Array


def draw_seed() -> int:
    """Returns a seed for the order of data, by what Keras's users seed that order with."""
    return random.getrandbits(31)


def read_framework_random_state() -> dict[str, Array]:
    """Returns the state of the framework's own shared generators, as a copy."""
    return {}  # JAX has none: each function is handed its key.


def write_framework_random_state(state: dict[str, Array]) -> None:
    """Puts the framework's own shared generators into a state that was read before."""

"""The seed generator that all of Keras shares."""

import keras


def global_seed_state() -> keras.Variable:
    """Returns the variable of the seed generator that all of Keras shares.

    Where there is none yet it is made, and seeded by a number that Python's generator gives.
    """
    return keras.src.random.seed_generator.global_seed_generator().state


def has_global_seed() -> bool:
    """Returns whether there is a seed generator yet that all of Keras shares."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    return keras.src.backend.common.global_state.get_global_attribute(name) is not None


def forget_global_seed() -> None:
    """Makes Keras make its shared seed generator anew when it is next asked for."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    keras.src.backend.common.global_state.set_global_attribute(name, None)

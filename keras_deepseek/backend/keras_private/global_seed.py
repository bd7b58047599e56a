"""Keras's global seed generator."""

import keras


def global_seed_state() -> keras.Variable:
    """Returns the variable of Keras's global seed generator.

    If there is none yet it is created, with a seed from Python's generator.
    """
    return keras.src.random.seed_generator.global_seed_generator().state


def has_global_seed() -> bool:
    """Returns True if Keras has created its global seed generator."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    return keras.src.backend.common.global_state.get_global_attribute(name) is not None


def forget_global_seed() -> None:
    """Makes Keras create its global seed generator again when it is next needed."""
    name = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    keras.src.backend.common.global_state.set_global_attribute(name, None)

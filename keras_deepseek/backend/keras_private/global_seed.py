"""Keras's global seed generator."""

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def kept_global_seed() -> Iterator[None]:
    """Context manager that forgets a global seed generator which was created in it.

    A stateless scope would leave it without a value.
    """
    had_one = has_global_seed()
    try:
        yield
    finally:
        if not had_one:
            forget_global_seed()

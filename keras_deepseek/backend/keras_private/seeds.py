"""The generators from which Keras on PyTorch draws random numbers."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


def replaced_generators(
    make: Callable[[Any, Callable[[Any], Any]], Any],
) -> AbstractContextManager[None]:
    """Returns a context manager in which Keras on PyTorch gets its generators from `make`.

    `make` takes a seed, as `keras.random` does, and Keras's own function of it. Keras makes a
    generator for each draw, and seeds it with a number.
    """
    from keras.src.backend.torch import random

    by_keras = random.torch_seed_generator
    return temporary_attributes(random, torch_seed_generator=lambda seed: make(seed, by_keras))


def drawn_seed(seed: Any) -> tuple[Any, Any]:
    """Returns the number with which Keras on PyTorch seeds a generator, and its device.

    The number is a scalar tensor. A `keras.random.SeedGenerator` advances.
    """
    from keras.src.backend.torch.core import get_device
    from keras.src.random.seed_generator import draw_seed

    first, second = draw_seed(seed)
    return first + second, get_device()

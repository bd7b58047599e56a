"""The seeds of a batch's random generators, equal on every worker."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import seed_states
from keras_deepseek.backend.tensor_values import read_values

_STRIDE = 15_485_863
"""The distance between the seeds of two batches: more than one batch draws, and prime to 2**31."""


class BatchSeeds:
    """Computes the seeds of each batch from the states of a model's seed generators."""

    def __init__(self, model: keras.Model) -> None:
        self.variables: list[Any] = seed_states(model)
        self._first = read_values(self.variables)

    def of(self, number: int) -> list[Array]:
        """Returns the states that the seed generators have for a batch."""
        moved = [np.array(state) for state in self._first]
        for state in moved:
            state[0] = (int(state[0]) + number * _STRIDE) % 2**31
        return moved

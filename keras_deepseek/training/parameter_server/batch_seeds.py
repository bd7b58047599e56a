"""The seeds of each batch, which are the same on every worker."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.host_values import read_values
from keras_deepseek.backend.keras_private.layers import seed_states

_STRIDE = 15_485_863
"""The distance between the seeds of two batches: more than one batch draws, and prime to 2**31."""


class BatchSeeds:
    """The states of a model's seed generators for each batch, derived from the current ones."""

    def __init__(self, model: keras.Model) -> None:
        self.variables: list[Any] = seed_states(model)
        self._first = read_values(self.variables)

    def of(self, number: int) -> list[Array]:
        """Returns the states of the generators for a batch."""
        moved = [np.array(each) for each in self._first]
        for state in moved:
            state[0] = (int(state[0]) + number * _STRIDE) % 2**31
        return moved

"""How much of each batch a device computes: as much as it is fast."""

from collections.abc import Sequence

import numpy as np

from keras_deepseek.artifacts.signature import Array

_MEMORY = 0.8
"""What a step takes of what is known of the speeds; five steps forget two thirds."""

_LEAST_DRIFT = 0.1
"""So much a share must be off, as a part of itself, before all are made anew."""


class DeviceShares:
    """The shares of devices in the rows of each batch.

    They begin as equals. Each step says how long they took for how many rows, and when their speeds
    have drifted from what the shares were made for, those are made anew.

    Args:
        num_devices: integer.
    """

    def __init__(self, num_devices: int) -> None:
        self.shares: Array = np.full(num_devices, 1.0 / num_devices)
        """The parts of a batch, which sum to 1."""
        self._speeds: Array = np.full(num_devices, np.nan)  # Rows a second.
        self._has_begun = False

    def cut(self, num_rows: int) -> Array:
        """Returns where the rows of each device begin, and behind them the number of all: int64.

        Args:
            num_rows: integer. The rows of a batch.
        """
        number = len(self.shares)
        spare = max(num_rows - number, 0)
        # Who has no row can't show that it has become faster.
        least = np.minimum(np.arange(1, number + 1), num_rows)
        ends = np.minimum(np.rint(np.cumsum(self.shares) * num_rows), num_rows)
        ends = np.clip(ends, least, least + spare)
        ends[-1] = num_rows
        return np.concatenate([[0], np.maximum.accumulate(ends)]).astype("int64")

    def learn(self, num_rows: Sequence[int] | Array, seconds: Sequence[float] | Array) -> None:
        """Takes note of how long a step took on each device, and makes the shares anew if need be.

        The first step counts for nothing: much is made in it that is there afterwards.

        Args:
            num_rows: integers. The rows that each has computed.
            seconds: floats.
        """
        if not self._has_begun:
            self._has_begun = True
            return
        rows = np.asarray(num_rows, "float64")
        found = rows / np.maximum(np.asarray(seconds, "float64"), 1e-9)
        known = np.where(np.isnan(self._speeds), found, self._speeds)
        # Who had no row has not shown how fast it is.
        self._speeds = np.where(rows > 0, _MEMORY * known + (1.0 - _MEMORY) * found, self._speeds)
        if np.any(np.isnan(self._speeds)):
            return
        wanted = self._speeds / self._speeds.sum()
        if np.any(np.abs(wanted - self.shares) > _LEAST_DRIFT * self.shares):
            self.shares = wanted

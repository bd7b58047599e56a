"""The share of each batch's rows that a device gets, in proportion to its speed."""

from collections.abc import Sequence

import numpy as np

from keras_deepseek.artifacts.signature import Array

_MEMORY = 0.8
"""The weight of the known speed against that of a new step. After five steps, two thirds are
new."""

_LEAST_DRIFT = 0.1
"""The relative change of a share that makes all of them change."""


class DeviceShares:
    """Divides the rows of each batch among devices in proportion to their measured speed.

    The shares begin equal, and are computed again when the measured speeds have drifted from them.
    """

    def __init__(self, num_devices: int) -> None:
        self.shares: Array = np.full(num_devices, 1.0 / num_devices)
        """The parts of a batch, which sum to 1."""
        self._speeds: Array = np.full(num_devices, np.nan)  # Rows per second.
        self._has_begun = False

    def cut(self, num_rows: int) -> Array:
        """Returns the first row of each device, followed by the number of rows, as int64."""
        number = len(self.shares)
        spare = max(num_rows - number, 0)
        # Each device needs a row, or it could not show that it has become faster.
        least = np.minimum(np.arange(1, number + 1), num_rows)
        ends = np.minimum(np.rint(np.cumsum(self.shares) * num_rows), num_rows)
        ends = np.clip(ends, least, least + spare)
        ends[-1] = num_rows
        return np.concatenate([[0], np.maximum.accumulate(ends)]).astype("int64")

    def learn(self, num_rows: Sequence[int] | Array, seconds: Sequence[float] | Array) -> None:
        """Records the seconds of a step on each device, and updates the shares after a drift.

        The first step is ignored: much is compiled and created in it.
        """
        if not self._has_begun:
            self._has_begun = True
            return
        rows = np.asarray(num_rows, "float64")
        speeds = rows / np.maximum(np.asarray(seconds, "float64"), 1e-9)
        old_speeds = np.where(np.isnan(self._speeds), speeds, self._speeds)
        # A device without rows has shown no speed.
        self._speeds = np.where(
            rows > 0, _MEMORY * old_speeds + (1.0 - _MEMORY) * speeds, self._speeds
        )
        if np.any(np.isnan(self._speeds)):
            return
        new_shares = self._speeds / self._speeds.sum()
        if np.any(np.abs(new_shares - self.shares) > _LEAST_DRIFT * self.shares):
            self.shares = new_shares

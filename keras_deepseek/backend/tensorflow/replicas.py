"""Steps on several devices of TensorFlow, each of which computes some of a batch's rows.

The variables stay on the first device, which makes the update, and the others read them from there.
The graph's executor runs the replicas side by side. So the model is a plain one, outside of a
`tf.distribute` scope, in which Keras's optimizers would clip and check the replicas one by one.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deepseek.backend.processes.device_shares import DeviceShares
from keras_deepseek.backend.processes.processes import ComputePart, LocalReplicas


class DeviceReplicas(LocalReplicas):
    """Step replicas on several devices of this process, by default with equal shares of a batch."""

    def __init__(self, devices: Sequence[str], shares: DeviceShares | None = None) -> None:
        self.devices = list(devices)
        self._shares = shares

    def sum(
        self, compute: ComputePart, batch: Any, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Sums what all devices compute: scalars and gradients."""
        parts, num_rows = self._divide(batch)
        seconds: list[Any] = [tf.zeros((), tf.float64)] * len(self.devices)
        begun = []
        for rank, (device, rows) in enumerate(zip(self.devices, parts, strict=True)):
            with self._timing(seconds, rank, rows) as ends, tf.device(device):
                begun.append(compute(rank, rows))
                ends.extend(begun[-1][0])
        scalars = self._add([scalars for scalars, _ in begun])
        results = []
        for rank, (device, (_, finish)) in enumerate(zip(self.devices, begun, strict=True)):
            with self._timing(seconds, rank, scalars) as ends, tf.device(device):
                results.append(finish(scalars, None))
                ends.extend(results[-1][1])
        counts, gradients = map(self._add, zip(*results, strict=True))
        if self._shares is not None:
            with tf.device("CPU:0"):
                tf.numpy_function(self._shares.learn, [num_rows, tf.stack(seconds)], [])
        return scalars, counts, gradients

    def _divide(self, batch: Any) -> tuple[list[Any], Any]:
        """Divides a batch among devices; also returns row counts if the shares are unequal.

        It runs where the batch is, so that each device receives only its own rows.
        """
        number, num_rows = len(self.devices), None
        with tf.device("CPU:0"):
            if self._shares is None:
                parts = [slice(rank, None, number) for rank in range(number)]
            else:
                first = next(array for array in keras.tree.flatten(batch) if array is not None)
                cuts = tf.numpy_function(self._shares.cut, [tf.shape(first)[0]], tf.int64)
                cuts.set_shape([number + 1])
                parts = [slice(cuts[rank], cuts[rank + 1]) for rank in range(number)]
                num_rows = cuts[1:] - cuts[:-1]
            return [
                keras.tree.map_structure(
                    lambda array, part=part: None if array is None else array[part], batch
                )
                for part in parts
            ], num_rows

    @contextmanager
    def _timing(self, seconds: list[Any], rank: int, starts: Any) -> Iterator[list[Any]]:
        """Context manager that measures the seconds from `starts` to the tensors of its list.

        Operations of the step read the clock, since TensorFlow chooses the order in which it runs
        them.
        """
        ends: list[Any] = []
        if self._shares is None:
            yield ends
            return
        tensors = [tensor for tensor in keras.tree.flatten(starts) if isinstance(tensor, tf.Tensor)]
        begin = _read_clock(tensors)
        with tf.control_dependencies([begin]):
            yield ends
        seconds[rank] += _read_clock(ends) - begin

    def _add(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        with tf.device(self.devices[0]):
            return [tf.add_n(tensors) for tensors in zip(*parts, strict=True)]


def _read_clock(after: Sequence[Any]) -> Any:
    """Returns the clock time in seconds at which tensors are computed.

    `tf.timestamp` counts as stateful, so devices would wait for each other's clocks.
    """
    with tf.device("CPU:0"), tf.control_dependencies(after):
        some = tf.reshape(after[0], [-1])[:1]  # Without an input it would be folded to a constant.
        return tf.numpy_function(
            lambda _: np.float64(time.perf_counter()), [some], tf.float64, stateful=False
        )

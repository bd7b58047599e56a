"""Training steps on several PyTorch devices, each of which has a share of a batch's rows."""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import torch

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend import current
from keras_deepseek.backend.processes.device_shares import DeviceShares
from keras_deepseek.backend.processes.processes import ComputePart, LocalReplicas
from keras_deepseek.backend.torch.devices import torch_device


class DeviceReplicas(LocalReplicas):
    """Step replicas on devices of this process, each with its share of a batch's rows.

    The variables stay on the first device, which makes the update. Keras's operations copy them to
    the device that computes, and the backward pass returns the gradients. How far accelerators
    overlap has not been measured. A CPU blocks until it has computed its share, so it should stand
    last.
    """

    def __init__(self, devices: Sequence[str], shares: DeviceShares) -> None:
        self.devices = list(devices)
        self._shares = shares
        self._last: tuple[Array, list[_Watch]] | None = None

    def sum(
        self, compute: ComputePart, batch: Any, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Sums what all devices compute: scalars and gradients."""
        # Read now: an accelerator had not finished when the last step returned.
        if self._last is not None:
            num_rows, watches = self._last
            self._shares.learn(num_rows, [watch.seconds() for watch in watches])
        first = next(array for array in keras.tree.flatten(batch) if array is not None)
        cuts = self._shares.cut(len(first))
        watches = [_Watch(torch_device(device)) for device in self.devices]
        begun = []
        for rank, (device, watch) in enumerate(zip(self.devices, watches, strict=True)):
            with current().devices.on_device(device), watch.timing():
                rows = _move(batch, slice(cuts[rank], cuts[rank + 1]), torch_device(device))
                begun.append(compute(rank, rows))
        scalars = self._add([scalars for scalars, _ in begun])
        # All devices wait for the sums before they get more work.
        device_scalars = [
            [scalar.to(torch_device(device)) for scalar in scalars] for device in self.devices
        ]
        results = []
        for rank, (device, watch) in enumerate(zip(self.devices, watches, strict=True)):
            with current().devices.on_device(device), watch.timing():
                results.append(begun[rank][1](device_scalars[rank], None))
        counts, gradients = map(self._add, zip(*results, strict=True))
        self._last = cuts[1:] - cuts[:-1], watches
        return scalars, counts, gradients

    def _add(self, parts: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        home = torch_device(self.devices[0])
        with torch.no_grad():
            return [
                functools.reduce(torch.add, [tensor.to(home) for tensor in tensors])
                for tensors in zip(*parts, strict=True)
            ]


class _Watch:
    """Measures for how many seconds a device computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[Any] = []

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Context manager that measures the work which the block starts on the device."""
        if self._device.type != "cuda":
            begin = time.perf_counter()
            yield
            self._spans.append(time.perf_counter() - begin)
            return
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        stream = torch.cuda.current_stream(self._device)
        events[0].record(stream)
        yield
        events[1].record(stream)
        self._spans.append(events)

    def seconds(self) -> float:
        """Waits for the device, and returns the measured seconds."""
        total = 0.0
        for span in self._spans:
            if isinstance(span, float):
                total += span
            else:
                span[1].synchronize()
                total += span[0].elapsed_time(span[1]) * 1e-3
        return total


def _move(batch: Any, rows: slice, device: torch.device) -> Any:
    return keras.tree.map_structure(
        lambda array: None if array is None else array[rows].to(device), batch
    )

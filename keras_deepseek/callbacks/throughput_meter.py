"""Adds throughput and device utilization to the logs."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.callbacks import trained_model
from keras_deepseek.callbacks.training_flops import (
    count_training_flops,
    estimate_training_flops,
    find_peak_flops,
)
from keras_deepseek.callbacks.training_pace import TrainingPace
from keras_deepseek.checks import check_number

_logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_FIGURES = 0.1


class ThroughputMeter(keras.callbacks.Callback):
    """Adds speed, device utilization, learning rate and memory to the logs.

    Put it before the callbacks that should see them: `ProgressDisplay`, `MetricsLog`,
    `TensorBoardEvents`, `WandbLogger`, ... It adds the figures of the last five seconds to each
    step, and the figures of the epoch without its first step to the epoch:

    | name | meaning |
    |---|---|
    | `steps_per_second`, `samples_per_second` | by Keras's own count of the samples |
    | `tokens_per_second` | samples a second times `tokens_per_sample` |
    | `model_flops_utilization` | MFU: operations a second that the model needs, over `peak_flops` |
    | `learning_rate` | read about once a second |
    | `process_memory_bytes`, `device_memory_bytes` | resident, and in use by the allocator |

    Unknown figures are omitted: MFU needs a peak and the operations of a sample, and a CPU has no
    peak unless you give it.

    Args:
        tokens_per_sample: float. The tokens of a sample without padding: the length of packed
            sequences, or the mean length of others. Defaults to `None`: no tokens are logged.
        flops_per_sample: float. The operations of training on one sample, such as
            `count_training_flops(model, x) / len(x)`. Defaults to `None`: they are counted if the
            model has known input shapes, otherwise estimated as
            `estimate_training_flops(parameters, tokens_per_sample)` if that is possible. A log
            message says which (`logging.getLogger("keras_deepseek")`).
        peak_flops: float. The peak of the devices that train, in operations a second. Defaults to
            `None`: that of one well-known accelerator in half precision, found by its name.
        clock: Function that returns the time in seconds. Defaults to `time.perf_counter`.

    Raises:
        InvalidInputError: A number is not above 0.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> meter = ThroughputMeter(tokens_per_sample=2, peak_flops=1e9)
    >>> x, y = np.ones((32, 2)), np.ones((32, 1))
    >>> history = model.fit(x, y, batch_size=4, verbose=0, callbacks=[meter])
    >>> {"tokens_per_second", "model_flops_utilization"} <= set(history.history)
    True

    Reference:

    - [PaLM (Chowdhery et al., 2022), appendix B: MFU](https://arxiv.org/abs/2204.02311)
    """

    async_safe = True  # Lets Keras read the logs without delaying the next step.

    def __init__(
        self,
        *,
        tokens_per_sample: float | None = None,
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        arguments = {
            "tokens_per_sample": tokens_per_sample,
            "flops_per_sample": flops_per_sample,
            "peak_flops": peak_flops,
        }
        for name, value in arguments.items():
            if value is not None:
                check_number(name, value, above=0)
        self.tokens_per_sample = tokens_per_sample
        self.flops_per_sample = flops_per_sample
        self.peak_flops = peak_flops
        self._pace = TrainingPace(clock)
        self._lock = threading.Lock()
        self._needs_utilization = False
        self._utilization_per_sample: float | None = None  # At one sample a second.
        self._figures: dict[str, float] = {}
        self._next_figures = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Finds the peak of the device, and the cost of a sample."""
        self._pace = TrainingPace(self._pace.clock)
        self._figures = {}
        self._needs_utilization = True
        self._find_utilization()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts measuring the epoch."""
        self._pace.begin_epoch()
        self._next_figures = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads values that are only available before a step."""
        self._pace.before_step(trained_model(self), batch)
        if self._needs_utilization:  # Keras on TensorFlow may build the model in its first step.
            self._find_utilization()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the figures of the last seconds."""
        with self._lock:
            now = self._pace.after_step(batch)
            if now >= self._next_figures:
                self._next_figures = now + _SECONDS_BETWEEN_FIGURES
                self._figures = self._read(of_epoch=False)
            figures = self._figures
        if logs is not None:
            logs.update(figures)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the figures of the epoch."""
        if logs is not None:
            logs.update(self._read(of_epoch=True))

    def _find_utilization(self) -> None:
        """Finds the MFU at one sample a second, once the model is built."""
        if not trained_model(self).built:
            return
        self._needs_utilization = False
        peak = self.peak_flops or find_peak_flops(backend.current().devices.read_device_name())
        flops = None if peak is None else self._find_flops()
        self._utilization_per_sample = None if peak is None or flops is None else flops / peak

    def _find_flops(self) -> float | None:
        if self.flops_per_sample is not None:
            return self.flops_per_sample
        flops: float | None = count_training_flops(self.model)
        if flops is not None:
            _logger.info("MFU: a sample takes %.3g operations, counted.", flops)
        elif self.tokens_per_sample is not None:
            flops = estimate_training_flops(self.model.count_params(), self.tokens_per_sample)
            _logger.info(
                "MFU: a sample takes %.3g operations, estimated as 6 * parameters * tokens.", flops
            )
        return flops

    def _read(self, *, of_epoch: bool) -> dict[str, float]:
        figures = self._pace.figures(of_epoch=of_epoch)
        samples = figures.get("samples_per_second")
        if samples is not None:
            if self.tokens_per_sample is not None:
                figures["tokens_per_second"] = samples * self.tokens_per_sample
            if self._utilization_per_sample is not None:
                figures["model_flops_utilization"] = samples * self._utilization_per_sample
        return figures

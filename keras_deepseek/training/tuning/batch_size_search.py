"""The search for the smallest batch size that is as fast as any that fits into memory."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.datasets import array_slices, find_data_adapter
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.data.position_data import check_data
from keras_deepseek.training.tuning.short_training import ShortTraining

_logger = logging.getLogger(__name__)

_TIMED_STEPS = 3  # After one step that compiles; the fastest counts.
_MIN_GAIN = 1.05  # Of the throughput, for twice the batch size to be worth it.
_PRECISION = 8  # The largest size that fits is searched to within an eighth of it.


@dataclasses.dataclass(frozen=True)
class BatchSizeSearch:
    """The result of a search for a batch size.

    `suggestion` is the smallest size whose throughput is within 5 % of the highest. It is `None`
    if not even a batch of one row fits into memory.

    Args:
        batch_sizes: list of integers. The sizes that ran, in ascending order.
        seconds_per_step: list of floats. The duration of a step, by batch size.
        samples_per_second: list of floats. The throughput, by batch size.
        out_of_memory: list of integers. The sizes that did not fit into memory.
        suggestion: integer or `None`. The size to train with.

    Example:

    >>> import keras, numpy as np
    >>> from keras_deepseek.training import Trainer
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> trainer = Trainer(model, optimizer="sgd", loss="mse")
    >>> x, y = np.ones((64, 4)), np.ones((64, 1))
    >>> search = trainer.find_batch_size(x, y, min_batch_size=4, max_batch_size=8)
    >>> search.batch_sizes, search.out_of_memory
    ([4, 8], [])
    """

    batch_sizes: list[int]
    seconds_per_step: list[float]
    samples_per_second: list[float]
    out_of_memory: list[int]
    suggestion: int | None


def search_batch_size(
    training: ShortTraining,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    min_batch_size: int,
    max_batch_size: int | None,
) -> BatchSizeSearch:
    """Times steps of growing batch sizes, and restores the model; see `Trainer.find_batch_size`."""
    check_integer("min_batch_size", min_batch_size)
    check_data(x, None)
    make_data, num_rows = _read_data(x, y, sample_weight)
    if max_batch_size is None:
        max_batch_size = max(num_rows, min_batch_size) if num_rows else None
    elif check_integer("max_batch_size", max_batch_size) < min_batch_size:
        raise InvalidInputError(
            f"`max_batch_size` must be at least `min_batch_size`, {min_batch_size}; received "
            f"{max_batch_size}."
        )

    def measure(size: int) -> float | None:
        clock = _StepClock()
        try:
            training.fit(1 + _TIMED_STEPS, [clock], **make_data(size))
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        else:
            return clock.fastest(size)
        # Outside of the handler: the error keeps the tensors of the step in memory.
        backend.current().devices.release_memory()
        training.restore()
        _logger.info("Batch size %d: out of memory.", size)
        return None

    with training.restored_state():
        return choose_size(measure, min_batch_size, max_batch_size)


def choose_size(
    measure: Callable[[int], float | None], min_batch_size: int, max_batch_size: int | None
) -> BatchSizeSearch:
    """Doubles a batch size while throughput grows, then bisects to the largest that fits.

    A size without gain is measured twice before the search ends, and the shorter time counts.
    `measure` returns the seconds of a step of a size, or `None` if it does not fit into memory.
    """
    seconds: dict[int, float] = {}
    failed: list[int] = []

    def fits(size: int) -> bool:
        measured = measure(size)
        if measured is None:
            failed.append(size)
            return False
        seconds[size] = min(measured, seconds.get(size, math.inf))
        return True

    size, minimum_speed = min_batch_size, 0.0
    while fits(size):
        if size / seconds[size] < minimum_speed:
            fits(size)  # Measured again: something else may have slowed the steps.
        if size == max_batch_size or size / seconds[size] < minimum_speed:
            break
        minimum_speed = _MIN_GAIN * size / seconds[size]
        size = 2 * size if max_batch_size is None else min(2 * size, max_batch_size)
    if failed:
        low, high = max(seconds, default=0), failed[0]
        while high - low > max(low // _PRECISION, 1):
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
    sizes = sorted(seconds)
    speeds = [size / seconds[size] for size in sizes]
    fast_enough = max(speeds, default=0.0) / _MIN_GAIN
    # The smallest size that is almost as fast as the fastest.
    suggestion = next(
        (size for size, speed in zip(sizes, speeds, strict=True) if speed >= fast_enough), None
    )
    return BatchSizeSearch(
        sizes, [seconds[size] for size in sizes], speeds, sorted(failed), suggestion
    )


class _StepClock(keras.callbacks.Callback):
    """Measures the seconds of each step except the first, which may include compilation."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds: list[float] = []
        self._begin = math.nan
        self._is_first = True

    def fastest(self, size: int) -> float:
        """Returns the seconds of the fastest measured step."""
        if not self._seconds:
            raise InvalidInputError(
                f"The data for batch size {size} hold fewer than two batches, and the first is not "
                "timed: pass more data."
            )
        _logger.info("Batch size %d: %.3g seconds a step.", size, min(self._seconds))
        return min(self._seconds)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for value in (logs or {}).values():
            float(value)  # Waits until the device has finished the step.
        if not self._is_first:
            self._seconds.append(time.perf_counter() - self._begin)
        self._is_first = False


def _is_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if backend.current().devices.is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _read_data(
    x: Any, y: Any, sample_weight: Any
) -> tuple[Callable[[int], dict[str, Any]], int | None]:
    """Returns a function from a batch size to `fit` arguments, and the number of data rows."""
    refusal = InvalidInputError(
        f"A {type(x).__name__} has a fixed batch size. Give arrays, or a function from a batch "
        "size to data of that size: lambda batch_size: MyPyDataset(batch_size)."
    )
    if hasattr(x, "__next__"):
        raise refusal
    if callable(x) and not hasattr(x, "shape"):
        return lambda size: _from_function(x(size), size), None
    if _is_text(x):
        return _from_texts(list(x), y, sample_weight), len(x)
    kind, adapter = find_data_adapter(
        x, y=y, sample_weight=sample_weight, batch_size=1, shuffle=False
    )
    if kind != "arrays":
        raise refusal
    num_rows, take = array_slices(adapter)

    return lambda size: _arguments(take(np.arange(size) % num_rows), size), num_rows


def _is_text(x: Any) -> bool:
    """Returns True if data are strings, which an overridden `fit` preprocesses."""
    if isinstance(x, list | tuple):
        return bool(x) and isinstance(x[0], str)
    return isinstance(x, np.ndarray) and x.dtype.kind in "OSU"


def _from_texts(texts: list[Any], y: Any, sample_weight: Any) -> Callable[[int], dict[str, Any]]:
    """Returns a function from a batch size to `fit` arguments, which repeats the texts."""
    rows = {"y": y, "sample_weight": sample_weight}

    def make(size: int) -> dict[str, Any]:
        indices = np.arange(size) % len(texts)
        batch = {
            name: None if array is None else np.asarray(array)[indices]
            for name, array in rows.items()
        }
        return {"x": [texts[index] for index in indices], "batch_size": size, **batch}

    return make


def _from_function(data: Any, size: int) -> dict[str, Any]:
    if not isinstance(data, tuple):
        return {"x": data}
    num_rows = len(next(array for array in keras.tree.flatten(data) if array is not None))
    if num_rows < size:
        raise InvalidInputError(
            f"The function was asked for a batch of {size} rows and returned {num_rows} rows. "
            "Return arrays of as many rows as the argument says."
        )
    return _arguments(data, size)


def _arguments(arrays: Any, size: int) -> dict[str, Any]:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(arrays)
    return {"x": x, "y": y, "sample_weight": sample_weight, "batch_size": size}

"""Requests, and the batches that carry their rows through the model and back.

`batch_queue` decides when a batch leaves, `batcher` runs it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, NotSupportedError

Reason = Literal["full", "idle", "gathered", "waited", "deadline", "closing", "retried"]
"""The reason why a batch left the queue. `"full"`: it had the most rows. `"idle"`: the model was
idle, and waiting would not have paid. `"gathered"`: the expected rows had come. `"waited"`: they
had not come in time. `"deadline"`: a deadline was near. `"closing"`: the batcher is closing.
`"retried"`: it is one request alone, after its batch had failed.
"""


@dataclass(frozen=True)
class BatchDecision:
    """The record of one batch: why it left the queue, its rows and its times.

    Args:
        rows: Rows of requests, without padding.
        queue_age: Seconds that the oldest request had waited.
        seconds: Seconds in the model.
        started: The time when it started, in seconds of the batcher's clock.
    """

    reason: Reason
    rows: int
    padded_rows: int
    queue_age: float
    seconds: float
    started: float = 0.0


class Request:
    """A request: rows of inputs that get one answer together.

    Requests share a batch only if their `shape_key` is equal.

    Args:
        inputs: Arrays by name, all with the same number of rows.
        deliver: Function that is called once with the request when `outputs` or `error` is set. Any
            thread may call it, so it must not block.
        deadline: The time at which the answer is useless, in seconds of the batcher's clock.
        priority: A request of higher priority leaves the queue first.
        connection: The file descriptor of the client's socket, if it is known. The request does not
            run if the client has hung up, though the server has not cancelled it yet.
    """

    __slots__ = (
        "__weakref__",
        "_answered_rows",
        "_deliver",
        "_open",
        "_parts",
        "arrived",
        "bytes",
        "connection",
        "deadline",
        "decision",
        "error",
        "inputs",
        "is_cached",
        "is_over",
        "outputs",
        "priority",
        "rows",
        "shape_key",
        "taken_rows",
    )

    def __init__(
        self,
        inputs: dict[str, Array],
        deliver: "Callable[[Request], None] | None" = None,
        *,
        deadline: float = math.inf,
        priority: int = 0,
        connection: int | None = None,
    ) -> None:
        row_counts = {array.shape[0] if array.ndim else None for array in inputs.values()}
        if len(row_counts) != 1 or None in row_counts:
            shapes = {name: array.shape for name, array in inputs.items()}
            raise InvalidInputError(
                f"Expected at least one input, all with the same number of rows; received {shapes}."
            )
        self.inputs = inputs
        self.rows: int = row_counts.pop() or 0
        self.bytes = sum([_count_bytes(array) for array in inputs.values()])
        self.shape_key = tuple(
            [(name, array.shape[1:], array.dtype) for name, array in sorted(inputs.items())]
        )
        self.deadline = deadline
        self.priority = priority
        self.connection = connection
        self.taken_rows = 0
        self.arrived = 0.0
        self.decision: BatchDecision | None = None
        """The record of the last batch that had rows of the request."""
        self.outputs: dict[str, Array] | None = None
        self.error: BaseException | None = None
        self.is_cached = False
        """True if the answer came from the cache."""
        self.is_over = False
        self._deliver = deliver
        self._open = iter((True,))
        """Yields its item to the first thread that ends the request, as `next` is atomic."""
        self._answered_rows = 0
        self._parts: dict[int, dict[str, Array]] = {}

    @property
    def has_answer(self) -> bool:
        """True if the request has outputs or an error. A withdrawn request has neither."""
        return self.outputs is not None or self.error is not None

    @property
    def waiting(self) -> int:
        """The number of the request's rows that are still in the queue.

        A request without rows counts as one.
        """
        return max(self.rows - self.taken_rows, 1)

    def answer(self, start: int, outputs: dict[str, Array], rows: int) -> None:
        """Adds the outputs of the request's rows from index `start` on.

        The last rows complete the request.
        """
        if rows == self.rows:
            self._finish(outputs, None)
            return
        self._parts[start] = outputs
        self._answered_rows += rows
        if self._answered_rows == self.rows:
            parts = [self._parts[start] for start in sorted(self._parts)]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in outputs}
            self._finish(joined, None)

    def fail(self, error: BaseException) -> None:
        """Answers the request with an error, unless it has an answer."""
        self._finish(None, error)

    def withdraw(self) -> bool:
        """Withdraws the request, so that it gets no answer.

        Returns false if it has one already.
        """
        if not next(self._open, False):
            return False
        self.is_over = True
        return True

    def _finish(self, outputs: dict[str, Array] | None, error: BaseException | None) -> None:
        if not next(self._open, False):
            return
        self.outputs, self.error = outputs, error
        self.is_over = True
        # Breaks the reference cycle, which only the garbage collector would free.
        deliver, self._deliver = self._deliver, None
        if deliver is not None:
            deliver(self)


class Slice(NamedTuple):
    """The rows of a request from `start` up to `stop`."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """The number of rows in the slice."""
        return self.stop - self.start


class Batch:
    """Rows that go through the model together; `queue_age` is the longest wait in seconds."""

    def __init__(self, slices: Sequence[Slice], reason: Reason, queue_age: float) -> None:
        self.slices = slices
        self.reason = reason
        self.queue_age = queue_age
        self.rows = sum([part.rows for part in slices])
        """The number of rows of its requests, without padding."""

    def drop_over(self) -> None:
        """Removes the requests that need no answer any more."""
        self.slices = [part for part in self.slices if not part.request.is_over]
        self.rows = sum([part.rows for part in self.slices])

    def stack(self, size: int) -> dict[str, Array]:
        """Stacks the inputs of all requests into arrays of `size` rows.

        The last row is repeated as padding.
        """
        return {
            name: _pad(
                [request.inputs[name][start:stop] for request, start, stop in self.slices], size
            )
            for name in self.slices[0].request.inputs
        }

    def distribute(self, outputs: dict[str, Array], size: int) -> None:
        """Gives each request its rows of `outputs`, which must have one row for each input row."""
        check_rows(outputs, size)
        position = 0
        for request, start, stop in self.slices:
            end = position + stop - start
            request_outputs = {name: array[position:end] for name, array in outputs.items()}
            request.answer(start, request_outputs, stop - start)
            position = end

    def split(self) -> list["Batch"]:
        """Splits the batch into one batch for each request."""
        return [Batch((part,), "retried", self.queue_age) for part in self.slices]

    def fail(self, error: BaseException) -> None:
        """Answers every request with an error."""
        for part in self.slices:
            part.request.fail(error)


def check_rows(outputs: dict[str, Array], size: int) -> None:
    """Raises a `NotSupportedError` if an output does not have `size` rows."""
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != size:
            raise NotSupportedError(
                f"Output {name!r} has shape {array.shape} for {size} rows. Expected one row in the "
                "first axis for each input row."
            )


def _count_bytes(array: Array) -> int:
    texts = array.flat if array.dtype.hasobject else ()
    return array.nbytes + sum([len(text) for text in texts if isinstance(text, str | bytes)])


def _pad(parts: list[Array], size: int) -> Array:
    rows = np.concatenate(parts)
    missing = size - len(rows)
    # Without a row to repeat, the model runs on zeros, or on empty strings.
    nothing = b"" if rows.dtype == object else 0
    last = rows[-1:] if len(rows) else np.full((1, *rows.shape[1:]), nothing, rows.dtype)
    return np.concatenate([rows, np.repeat(last, missing, axis=0)]) if missing else rows

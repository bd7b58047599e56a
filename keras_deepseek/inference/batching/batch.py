"""Requests, and the batches that carry their rows through the model and back.

Nothing here decides when a batch leaves (`batch_queue`) or runs it (`batcher`).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, NotSupportedError

if TYPE_CHECKING:
    from keras_deepseek.inference.batching.batch_totals import BatchDecision

Reason = Literal["full", "idle", "gathered", "waited", "deadline", "closing", "retried"]
"""Why a batch left: it was full; the model was idle, and waiting would not have paid; the rows that
were waited for had come; they had not, in the time that waiting pays, or that is fixed; a deadline
drew near; the batcher is closing; or it is one request alone, after its batch had failed."""


class Request:
    """Rows that came together and are answered together, once.

    Args:
        inputs: dict of arrays by name, rows first.
        deliver: Function of the request, called once, when `outputs` or `error` is there: on the
            model's thread, or on the one that found the deadline passed. It must not block.
            Defaults to `None`.
        deadline: float. The time in seconds after which nobody wants the answer. Defaults to never.
        priority: integer. Of those that wait for the same model, higher ones leave first. Defaults
            to `0`.

    What `lane` holds must be equal in two requests for them to share a batch.

    Raises:
        InvalidInputError: The arrays differ in their number of rows.
    """

    __slots__ = (
        "_answered_rows",
        "_deliver",
        "_open",
        "_parts",
        "arrived",
        "deadline",
        "decision",
        "error",
        "inputs",
        "is_cached",
        "is_over",
        "lane",
        "outputs",
        "priority",
        "rows",
        "taken",
    )

    def __init__(
        self,
        inputs: dict[str, Array],
        deliver: "Callable[[Request], None] | None" = None,
        *,
        deadline: float = math.inf,
        priority: int = 0,
    ) -> None:
        sizes = {array.shape[0] if array.ndim else None for array in inputs.values()}
        if len(sizes) != 1 or None in sizes:
            shapes = {name: array.shape for name, array in inputs.items()}
            raise InvalidInputError(
                f"Expected at least one input, all with the same number of rows; received {shapes}."
            )
        self.inputs = inputs
        self.rows: int = sizes.pop() or 0
        self.lane = tuple(
            [(name, array.shape[1:], array.dtype) for name, array in sorted(inputs.items())]
        )
        self.deadline = deadline
        self.priority = priority
        self.taken = 0
        self.arrived = 0.0
        self.decision: BatchDecision | None = None
        """What is known of the last batch that it was in."""
        self.outputs: dict[str, Array] | None = None
        self.error: BaseException | None = None
        self.is_cached = False
        """Whether the answer is one that was kept."""
        self.is_over = False
        self._deliver = deliver
        self._open = iter((True,))
        self._answered_rows = 0
        self._parts: dict[int, dict[str, Array]] = {}

    @property
    def has_answer(self) -> bool:
        """Whether there are outputs or an error: not where it was withdrawn."""
        return self.outputs is not None or self.error is not None

    @property
    def waiting(self) -> int:
        """Rows still in the queue. A request of no rows takes the place of one."""
        return max(self.rows - self.taken, 1)

    def answer(self, start: int, outputs: dict[str, Array], rows: int) -> None:
        """Takes the outputs of the rows from `start` on; the last of them completes the request."""
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
        """Answers with an error, unless there is an answer."""
        self._finish(None, error)

    def withdraw(self) -> bool:
        """Returns whether there was no answer yet; there will be none any more."""
        if not next(self._open, False):
            return False
        self.is_over = True
        return True

    def _finish(self, outputs: dict[str, Array] | None, error: BaseException | None) -> None:
        # Of the threads that come here at the same time, one gets the iterator's only item.
        if not next(self._open, False):
            return
        self.outputs, self.error = outputs, error
        self.is_over = True
        # Forgotten, so that the two don't hold each other until the garbage collector comes.
        deliver, self._deliver = self._deliver, None
        if deliver is not None:
            deliver(self)


class Slice(NamedTuple):
    """The rows from `start` up to `stop` of one request."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows these are."""
        return self.stop - self.start


class Batch:
    """Rows that go through the model together.

    Args:
        slices: sequence of `Slice`, of requests in the same lane.
        reason: string. Why the batch left.
        queue_age: float. Seconds that its oldest request had waited.
    """

    def __init__(self, slices: Sequence[Slice], reason: Reason, queue_age: float) -> None:
        self.slices = slices
        self.reason = reason
        self.queue_age = queue_age
        self.rows = sum([part.rows for part in slices])
        """How many rows the requests brought."""

    def stack(self, size: int) -> dict[str, Array]:
        """Returns the inputs as arrays of `size` rows: the last row is repeated to fill them."""
        return {
            name: _pad(
                [request.inputs[name][start:stop] for request, start, stop in self.slices], size
            )
            for name in self.slices[0].request.inputs
        }

    def distribute(self, outputs: dict[str, Array], size: int) -> None:
        """Gives each request its rows of `outputs`.

        Raises:
            NotSupportedError: An output does not have one row for each row that went in.
        """
        check_rows(outputs, size)
        position = 0
        for request, start, stop in self.slices:
            end = position + stop - start
            own = {name: array[position:end] for name, array in outputs.items()}
            request.answer(start, own, stop - start)
            position = end

    def split(self) -> list["Batch"]:
        """Returns a batch for each request alone."""
        return [Batch((part,), "retried", self.queue_age) for part in self.slices]

    def fail(self, error: BaseException) -> None:
        """Answers every request with an error."""
        for part in self.slices:
            part.request.fail(error)


def check_rows(outputs: dict[str, Array], size: int) -> None:
    """Refuses outputs that have not one row for each row that went in.

    Args:
        outputs: dict of arrays by name.
        size: integer. How many rows went in.

    Raises:
        NotSupportedError: One of them has not.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != size:
            raise NotSupportedError(
                f"Output {name!r} has shape {array.shape} for {size} rows. A served model must "
                "give one row, in the first axis, for each row that it takes."
            )


def _pad(parts: list[Array], size: int) -> Array:
    rows = np.concatenate(parts)
    missing = size - len(rows)
    # Without a row to repeat, zeros, or empty strings, find out the shape of the outputs.
    nothing = b"" if rows.dtype == object else 0
    last = rows[-1:] if len(rows) else np.full((1, *rows.shape[1:]), nothing, rows.dtype)
    return np.concatenate([rows, np.repeat(last, missing, axis=0)]) if missing else rows

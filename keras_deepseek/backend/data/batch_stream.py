"""The batches of a training in their order over all epochs, and the position in them.

An epoch is one pass over the data, or `steps_per_epoch` batches of consecutive passes. A position
holds the pass, how many of its batches were used, and how many were drawn: a generator that was
asked for one batch more has moved on, and so have the random numbers that it draws.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.data.batch_source import BatchSource
from keras_deepseek.backend.data.random_state import read_random_state, write_random_state
from keras_deepseek.backend.profiling.step_trace import DATA_WAIT
from keras_deepseek.errors import InvalidInputError


class BatchStream:
    """The batches of a source, epoch by epoch, from any position on.

    `steps_per_epoch=None` makes an epoch of one pass.
    """

    def __init__(self, source: BatchSource, steps_per_epoch: int | None) -> None:
        self.source = source
        self.steps_per_epoch = steps_per_epoch
        self.epoch_length: int | None = None  # Set at the last batch of the epoch.
        self.error: Exception | None = None  # The error that the data raised.
        self.on_take: Callable[[Any], None] | None = None
        """Function that is called with each batch that leaves the stream."""
        self.waited = 0.0
        """Seconds for which batches were waited for, until the reader of this number resets it."""
        self._failure: Exception | None = None  # The error of the next batch.
        self._in_epoch = False
        self._taken_in_epoch = 0
        self._pass = 0
        self._begun: dict[str, Any] | None = None  # The states at the start of the current pass.
        self._iterator: Iterator[Any] = iter(())
        self._buffer: deque[Any] = deque()
        self._drawn = 0
        self._is_exhausted = False

    @property
    def steps(self) -> int | None:
        """The number of batches of an epoch, or `None` if it is unknown."""
        return self.steps_per_epoch or self.source.num_batches

    @property
    def is_epoch_short(self) -> bool:
        """True if the data ended before the epoch had its `steps_per_epoch` batches."""
        most, length = self.steps_per_epoch, self.epoch_length
        return most is not None and length is not None and length < most

    def begin_epoch(self, done: int = 0) -> None:
        """Begins an epoch of which `done` batches were used already."""
        self._taken_in_epoch = done
        self.epoch_length = None
        if not done:
            self.peek(1)
        self._in_epoch = True

    def end_epoch(self) -> None:
        """Ends an epoch, and its pass if the last batch of the pass is known to be used.

        It draws no batch to find out, so that a generator that is trained on again has lost none.
        """
        self._in_epoch = False
        self._taken_in_epoch = 0
        is_known = self.source.is_length_exact or self._is_exhausted
        if self._begun is not None and is_known and self._is_pass_over():
            self._end_pass()

    def can_go_on(self) -> bool:
        """Returns True at the end of an epoch if there are batches for another one."""
        return self.source.can_repeat or (self._begun is not None and not self._is_pass_over())

    def close(self) -> None:
        """Ends the current pass and the workers that load its batches."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            with contextlib.suppress(ValueError):  # TensorFlow may be drawing a batch.
                close()

    def batches(self) -> Iterator[Any]:
        """Yields the remaining batches of the epoch, or the first batch if no epoch has begun."""
        if not self._in_epoch:
            yield from self.peek(1)
        while self._in_epoch and self.epoch_length is None:
            yield self._take()

    def peek(self, count: int) -> list[Any]:
        """Returns the next `count` batches without taking them, or fewer at the end of the pass."""
        if self._begun is None:
            self._begin_pass()
        self._fill(count)
        if not self._buffer and self._taken and self._failure is None:
            # `steps_per_epoch` ended with the pass.
            self._end_pass()
            self._begin_pass()
            self._fill(count)
        self._raise_failure()
        if not self._buffer:
            raise InvalidInputError("The training data hold no batch. Give data with at least one.")
        return list(self._buffer)[:count]

    def look_ahead(self, count: int) -> list[Any]:
        """Returns up to `count` next batches of the epoch without taking them.

        Errors in them are raised when they are taken.
        """
        if not self._in_epoch or self.epoch_length is not None:
            return []
        if self.steps_per_epoch is not None:
            count = min(count, self.steps_per_epoch - self._taken_in_epoch)
        self._fill(count)
        return list(self._buffer)[:count]

    def read_position(self, done: int = 0) -> dict[str, Any]:
        """Returns the position of the stream after `done` batches of the epoch.

        Keras may have taken one batch more than it used.
        """
        return {
            "kind": self.source.kind,
            "num_batches": self.source.num_batches,
            "steps_per_epoch": self.steps_per_epoch,
            "pass": self._pass,
            "taken": self._taken - (self._taken_in_epoch - done),
            "drawn": self._drawn,
            "begun": self._begun,
            "next": None if self._begun else self.source.read_state(),
        }

    def go_to(self, position: dict[str, Any]) -> None:
        """Moves the stream to a position of `read_position`, on data not yet read in this process.

        It changes the global random number generators of the process if the data use them.
        """
        here = self.read_position()
        for name in ("kind", "num_batches", "steps_per_epoch"):
            if here[name] != position[name]:
                raise InvalidInputError(
                    f"The training data are not those of the checkpoint: {name} is {here[name]!r} "
                    f"and was {position[name]!r}. Give the same data, or train without resume."
                )
        self._pass, self._begun = position["pass"], position["begun"]
        if self._begun is None:
            self.source.go_to_pass(self._pass, position["next"])
            return
        if self._begun["random"] is not None:
            write_random_state(self._begun["random"])
        self.source.go_to_pass(self._pass, self._begun["source"])
        self._iterator = self.source.own_rows(self._pass, position["taken"])
        self._drawn = position["taken"]
        self._fill(position["drawn"] - position["taken"])
        self._raise_failure()
        if self._drawn < position["drawn"]:
            raise InvalidInputError(
                f"The training data end before batch {position['drawn']}, where the checkpoint "
                "was written. Give the same data, or train without resume."
            )

    @property
    def _taken(self) -> int:
        return self._drawn - len(self._buffer)

    def _take(self) -> Any:
        self._fill(1)
        self._raise_failure()
        if not self._buffer:
            raise InvalidInputError(
                f"The training data ended after {self._taken} batches; expected "
                f"{self.source.num_batches}."
            )
        batch = self._buffer.popleft()
        self._taken_in_epoch += 1
        if self._taken_in_epoch == self.steps_per_epoch or self._is_pass_over():
            self.epoch_length = self._taken_in_epoch
        if self.on_take is not None:
            self.on_take(batch)
        return batch

    def _is_pass_over(self) -> bool:
        """Returns True if the pass over the data has no batch left; may draw one to find out."""
        if self.source.is_length_exact:
            return self._taken == self.source.num_batches
        self._fill(1)
        return not self._buffer and self._failure is None

    def _fill(self, count: int) -> None:
        """Draws batches into the buffer until it has `count`, or until the data end."""
        started = time.perf_counter()
        while len(self._buffer) < count and not self._is_exhausted and self._failure is None:
            try:
                with backend.current().step.annotate(DATA_WAIT):
                    batch = next(self._iterator)
            except StopIteration:
                self._is_exhausted = True
            except Exception as error:  # noqa: BLE001 - raised when that batch is asked for.
                self._failure = error
            else:
                self._buffer.append(batch)
                self._drawn += 1
        self.waited += time.perf_counter() - started

    def _raise_failure(self) -> None:
        if self._failure is not None and not self._buffer:
            self.error = self._failure  # TensorFlow wraps it in its own error.
            raise self._failure

    def _begin_pass(self) -> None:
        shares = self.source.uses_shared_generators
        random = read_random_state() if shares else None
        self._begun = {"random": random, "source": self.source.read_state()}
        self._iterator = self.source.own_rows(self._pass, 0)
        self._drawn = 0
        self._is_exhausted = False
        self._failure = None

    def _end_pass(self) -> None:
        self.source.end_pass()
        self._pass += 1
        self._begun = None
        self._iterator = iter(())
        self._drawn = 0


class Epochs:
    """An iterable over the batches of an epoch, which applies `change` to each batch."""

    def __init__(
        self, make_batches: Callable[[], Iterator[Any]], change: Callable[[Any], Any]
    ) -> None:
        self._make_batches = make_batches
        self._change = change

    def __iter__(self) -> Iterator[Any]:
        for batch in self._make_batches():
            yield keras.tree.map_structure(self._change, batch, none_is_leaf=False)

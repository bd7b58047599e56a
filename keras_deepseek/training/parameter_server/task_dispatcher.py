"""Hands batches to workers of TensorFlow's coordinator, and makes their updates.

The coordinator knows which worker has which batch, and gives that of a worker that has died to
another. What is left to do here is to hand out no more than the bound allows, and to make each
update once.
"""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.processes.task_cluster import ResultLostError, TaskCluster
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.parameter_server.messages import Result, ShardValues
from keras_deepseek.training.parameter_server.remote_model import RemoteModel
from keras_deepseek.training.parameter_server.staleness import StalenessBound
from keras_deepseek.training.parameter_server.task_step import TaskStep

_MOST_LOST = 3
"""How often the result of a batch may go with a worker."""

_LOOK_EVERY = 1.0
"""Seconds between two looks at whether the tasks are there."""


class Tasks(Protocol):
    """Whoever started the workers and servers."""

    def look_after(self, ends_workers: bool = False) -> None:
        """Starts workers again that have ended; first ends all, since none answers.

        Args:
            ends_workers: boolean. Whether to do so.

        Raises:
            PeerLostError: A server has ended, or workers can't be started.
        """

    def note_update(self) -> None:
        """Is told that the workers make progress."""


@dataclass
class _Batch:
    number: int
    slot: int
    rate: float | None
    arguments: Sequence[Any]
    num_lost: int = 0


class TaskDispatcher:
    """Hands out batches and makes updates.

    Args:
        cluster: `TaskCluster`.
        step: `TaskStep`, with its servers.
        num_slots: integer. How many batches may be under way.
        staleness: `StalenessBound`.
        timeout: float. The seconds after which workers that do not answer are given up.
        tasks: `Tasks`.
    """

    def __init__(
        self,
        cluster: TaskCluster,
        step: TaskStep,
        *,
        num_slots: int,
        staleness: StalenessBound,
        timeout: float,
        tasks: Tasks,
    ) -> None:
        self._cluster = cluster
        self._step = step
        self._compiled = cluster.compile(step)
        self._staleness = staleness
        self._timeout = timeout
        self._tasks = tasks
        self._free = list(range(num_slots))
        self._open: dict[Future[Any], _Batch] = {}
        self._done: deque[Result] = deque()
        self._next = 0
        self._num_updates = 0

    @property
    def num_open(self) -> int:
        """How many batches were handed over and not given back by `wait`."""
        return len(self._open) + len(self._done)

    def begin(self, number: int, values: Sequence[ShardValues], variables: Sequence[Array]) -> None:
        """Gives the servers what they begin with.

        Args:
            number: integer. That of the first batch.
            values: The `ShardValues` of each server.
            variables: Not needed here: workers hold nothing.
        """
        self._next = self._num_updates = number
        self._remote.write(values)

    def go_on(self, values: Sequence[ShardValues]) -> None:
        """Goes on from what `collect` has returned, which the servers hold.

        Args:
            values: The `ShardValues` of each server.
        """

    def may_hand(self) -> bool:
        """Returns whether a further batch may be handed out now."""
        return bool(self._free) and self._staleness.may_begin()

    def hand(self, batch: Any, rate: float | None) -> None:
        """Hands out the next batch.

        Args:
            batch: Structure of NumPy arrays.
            rate: float. The learning rate, or `None` where a schedule says it.
        """
        number, slot = self._next, self._free.pop()
        arguments = [batch, self._step.seeds.of(number), np.int32(slot)]
        self._schedule(_Batch(number, slot, rate, arguments))
        self._staleness.begin(number)
        self._next += 1

    def wait(self) -> Result:
        """Returns the result of a batch whose update was made, whichever is first."""
        while not self._done:
            self._pump()
        return self._done.popleft()

    def collect(self) -> list[ShardValues]:
        """Returns what the servers hold once all that was handed over is in it."""
        while self._open:
            self._pump()
        return self._remote.read(self._num_updates)

    def _pump(self) -> None:
        """Waits for the next batches to be computed, and makes their updates."""
        last = time.monotonic()
        is_given_up = False
        while True:
            ready, _ = wait(self._open, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
            if ready:
                self._note(sorted(ready, key=lambda future: self._open[future].number))
                return
            if time.monotonic() - last > self._timeout:
                if is_given_up:
                    raise PeerLostError(
                        f"No worker has answered for {2 * self._timeout:g} seconds. The first "
                        "error in the logs of all says why."
                    )
                is_given_up, last = True, time.monotonic()
                self._tasks.look_after(ends_workers=True)
            self._tasks.look_after()

    @property
    def _remote(self) -> RemoteModel:
        if self._step.remote is None:
            raise RuntimeError("There are no servers.")
        return self._step.remote

    def _schedule(self, batch: _Batch) -> None:
        self._open[self._cluster.schedule(self._compiled, batch.arguments)] = batch

    def _schedule_again(self, batch: _Batch, error: BaseException | None) -> None:
        """Has a batch computed again, into its slot, whose result has gone with a worker."""
        self._tasks.look_after()  # It may have been a server.
        batch.num_lost += 1
        if batch.num_lost >= _MOST_LOST:
            raise PeerLostError(
                f"What workers have found of batch {batch.number} was lost {batch.num_lost} times. "
                f"A parameter server may have ended; then go on from a checkpoint. {error}"
            ) from error
        self._schedule(batch)

    def _note(self, ready: Sequence["Future[Any]"]) -> None:
        """Makes the updates of batches that were computed."""
        errors = [error for each in ready if (error := each.exception()) is not None]
        derived = CancelledError, ResultLostError
        causes = [each for each in errors if not isinstance(each, derived)]
        if causes:
            raise causes[0]
        if len([each for each in errors if isinstance(each, CancelledError)]) == len(self._open):
            raise PeerLostError("The workers were told to leave what they compute.")
        lost = [each for each in ready if isinstance(each.exception(), ResultLostError)]
        for future in lost:
            self._schedule_again(self._open.pop(future), future.exception())
        for future in [each for each in ready if each.exception() is None]:
            batch = self._open.pop(future)
            logs, metrics = future.result()
            self._remote.update(batch.slot, batch.rate)
            self._num_updates += 1
            self._tasks.note_update()
            self._staleness.end(batch.number)
            self._free.append(batch.slot)
            numbers = {name: float(value) for name, value in logs.items()}
            self._done.append(Result(numbers, [_to_array(each) for each in metrics], []))


def _to_array(value: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(value))

"""The interface to workers and servers, and the bound on how stale their weights may be."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.training.parameter_server.messages import Result, ShardValues, Task


class ProcessEndedError(Exception):
    """The error for a worker or server process that ended before it answered."""


class Workers(ABC):
    """The interface to workers and servers, which sends batches and values.

    The `Dispatcher` decides which worker computes which batch, and when. A future is whatever
    the engine uses for one. Methods that return a future return at once.
    """

    num_workers: int
    """The number of batches that can be computed at once."""

    num_servers: int

    @abstractmethod
    def set_up_worker(self, worker: int, variables: Sequence[Array]) -> Any:
        """Sets up a worker, at first or after a restart; returns a future of its readiness.

        `variables` are the values of all variables of the chief's model.
        """

    @abstractmethod
    def compute(self, worker: int, task: Task) -> Any:
        """Sends a batch to a worker; returns a future for `finish`."""

    @abstractmethod
    def finish(self, worker: int, task: Task, future: Any) -> Result | None:
        """Returns the result of a computed batch, and starts its update on the servers.

        `Result.pushes` holds the futures of the servers' answers. It is empty if the update is
        already made, and `None` if a server has lost its values. Returns `None` if the worker has
        restarted and holds no model. After a `ProcessEndedError` the batch must be computed again.
        """

    @abstractmethod
    def restart_workers(self, workers: Sequence[int]) -> None:
        """Kills workers that do not answer, which the engine then starts again."""

    @abstractmethod
    def set_up_server(self, server: int, values: ShardValues) -> Any:
        """Sends a server its values; returns the future of an ID of the server's present run.

        A server that restarts has a new ID.
        """

    @abstractmethod
    def read_server(self, server: int) -> Any:
        """Returns the future of the server's `ShardValues`; `None` if it has lost them."""

    def read_life(self, server: int) -> Any:
        """Returns the future of a server's run ID; `None` if the server has lost its values."""
        raise NotImplementedError("The servers of this engine do not restart.")

    def restart_server(self, server: int) -> None:
        """Kills a server that does not answer; the engine starts it again without values."""
        raise NotImplementedError("The servers of this engine do not restart.")

    @abstractmethod
    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        """Waits for at least one future, and returns the finished ones.

        An empty list after `timeout` seconds.
        """

    @abstractmethod
    def result(self, future: Any) -> Any:
        """Returns the value of a finished future, except of one that `compute` returned.

        Raises the error of the worker's code, or a `ProcessEndedError` if the process ended.
        """


class StalenessBound:
    """Decides when a batch may start, so that no weights miss more updates than the bound.

    For each unfinished batch it counts the most that its weights can miss: the updates that may not
    have been in them when the batch started, and every batch that started later. `num_workers`
    batches are computed at once. With `looks_ahead`, a worker may pull weights before its batch is
    there.
    """

    def __init__(self, bound: int, num_workers: int, *, looks_ahead: bool = True) -> None:
        self.bound = bound
        # If no worker is slow, a batch misses up to 3 * num_workers - 2 updates: those that the
        # others push and compute meanwhile.
        spare = bound - (3 * num_workers - 2)
        self.most_before = max(0, min(num_workers, spare)) if looks_ahead else 0
        """The most updates that may be made between an early pull of weights and their batch."""
        self._misses: dict[int, int] = {}

    def may_begin(self) -> bool:
        """Returns True if another batch may start now."""
        if not self._misses:
            return True
        possible_misses = len(self._misses) + self.most_before
        return max(possible_misses, *(misses + 1 for misses in self._misses.values())) <= self.bound

    def begin(self, number: int) -> None:
        """Counts a batch that starts on a worker."""
        possible_misses = len(self._misses) + self.most_before
        self._misses = {other: misses + 1 for other, misses in self._misses.items()}
        self._misses[number] = possible_misses

    def end(self, number: int) -> None:
        """Forgets a batch whose update was made, or that must be computed again."""
        self._misses.pop(number, None)

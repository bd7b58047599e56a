"""Which batch is with which worker, which update was made, and what is done where one dies.

The chief's bookkeeping. A batch has a number, the step of the training that it is: it is handed to
a worker that is free, and counted once each server has made its update. Where its worker dies,
another gets it, and servers that have its update leave the second one out. Where a server dies, it
goes on from its last snapshot, and the batches since then, which the chief has kept, are computed
again: the other servers have their updates, and leave them out.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.parameter_server.messages import Result, ShardValues, Task
from keras_deepseek.training.parameter_server.staleness import StalenessBound

_MOST_DEATHS = 3
"""How many workers may die of one batch before it is taken for the cause."""


class ActorLostError(Exception):
    """A worker or a server has ended, or the result of one that has."""


class Actors(Protocol):
    """The workers and servers. What returns a future returns at once."""

    num_workers: int
    num_servers: int

    def set_up_worker(self, worker: int, variables: Sequence[Array]) -> Any:
        """Returns the future of a worker's being ready; also of one that has to begin anew."""

    def compute(self, worker: int, task: Task) -> Any:
        """Returns the future of a `Result`, `None` of a worker that has begun anew."""

    def restart_worker(self, worker: int) -> None:
        """Ends a worker that does not answer; it begins anew."""

    def set_up_server(self, server: int, values: ShardValues) -> Any:
        """Returns the future of the life that a server has taken over `ShardValues` in."""

    def life(self, server: int) -> Any:
        """Returns the future of a server's life, `None` where it has no values."""

    def read(self, server: int) -> Any:
        """Returns the future of a server's `ShardValues`, `None` where it has none."""

    def restart_server(self, server: int) -> None:
        """Ends a server that does not answer; it begins anew."""

    def wait(self, futures: Sequence[Any], timeout: float) -> list[Any]:
        """Returns the futures that are there, one at least; none where none comes in time."""

    def result(self, future: Any) -> Any:
        """Returns what a future that is there stands for.

        Raises:
            ActorLostError: Who was to compute it has ended.
        """


@dataclass
class _Entry:
    """A batch on its way to being counted."""

    task: Task
    is_repair: bool = False  # It was counted, and is computed again for a server.
    num_deaths: int = 0
    result: Result | None = None
    pushes: dict[Any, int] = field(default_factory=dict)  # To a server, and not answered yet.


class Dispatcher:
    """Hands out batches and counts updates.

    Args:
        actors: `Actors`.
        staleness_bound: integer. See `ParameterServer`.
        snapshot_every: integer. See `ParameterServer`.
        timeout: float. The seconds after which who does not answer is given up.
    """

    def __init__(
        self, actors: Actors, *, staleness_bound: int, snapshot_every: int, timeout: float
    ) -> None:
        self._actors = actors
        self._snapshot_every = snapshot_every
        self._timeout = timeout
        self._staleness = StalenessBound(staleness_bound, actors.num_workers)
        self._variables: list[Array] = []
        self._next = 0  # The number of the next batch.
        self._num_counted = 0  # The updates that were made for sure.
        self._num_since_snapshot = 0
        self._free: deque[int] = deque()
        self._queue: deque[_Entry] = deque()
        self._computing: dict[Any, tuple[int, _Entry]] = {}
        self._pushing: dict[Any, _Entry] = {}
        self._away: dict[Any, int] = {}
        self._snapshotting: dict[Any, int] = {}
        self._snapshots: list[ShardValues] = []
        self._lives: list[str] = []  # Of the servers. What an earlier one has, may be lost.
        self._kept: dict[int, Task] = {}  # Those counted that not all snapshots have.
        self._done: deque[Result] = deque()

    @property
    def num_open(self) -> int:
        """How many batches were handed over and not given back by `wait`."""
        entries = [*self._queue, *(entry for _, entry in self._computing.values())]
        entries += {id(entry): entry for entry in self._pushing.values()}.values()
        return len(self._done) + sum(not entry.is_repair for entry in entries)

    def begin(self, number: int, values: Sequence[ShardValues], variables: Sequence[Array]) -> None:
        """Gives servers and workers what they begin with, and waits until they are ready.

        Args:
            number: integer. That of the first batch.
            values: The `ShardValues` of each server.
            variables: list of NumPy arrays, all variables of the model.
        """
        self._next = self._num_counted = number
        self._variables = list(variables)
        self.go_on(values)
        futures = [self._actors.set_up_server(server, held) for server, held in enumerate(values)]
        self._lives = self._finish(futures)
        if not (self._free or self._away):
            for worker in range(self._actors.num_workers):
                self._set_up_worker(worker)
        while self._away:  # They compile, each of them, before the first batch.
            self._pump()

    def go_on(self, values: Sequence[ShardValues]) -> None:
        """Goes on from what `collect` has returned: servers that die come back to here.

        Args:
            values: The `ShardValues` of each server.
        """
        self._snapshots = list(values)
        self._kept.clear()
        self._snapshotting.clear()
        self._num_since_snapshot = 0

    def may_hand(self) -> bool:
        """Returns whether a further batch would be computed at once."""
        return bool(self._free) and not self._queue and self._staleness.may_begin()

    def hand(self, batch: Any, rate: float | None) -> None:
        """Takes over the next batch.

        Args:
            batch: Structure of NumPy arrays.
            rate: float. The learning rate, or `None` where a schedule says it.
        """
        self._queue.append(_Entry(Task(self._next, batch, rate)))
        self._next += 1
        self._assign()

    def wait(self) -> Result:
        """Returns the result of a batch whose update was made, whichever is first."""
        while not self._done:
            self._pump()
        return self._done.popleft()

    def collect(self) -> list[ShardValues]:
        """Returns what the servers hold once all that was handed over is in it."""
        while True:
            while self._queue or self._computing or self._pushing:
                self._pump()
            futures = [self._actors.read(each) for each in range(self._actors.num_servers)]
            values = self._finish(futures)
            if all(held is not None for held in values):
                return values
            self._recover()

    def _assign(self) -> None:
        while self._queue and self._free and self._staleness.may_begin():
            entry, worker = self._queue.popleft(), self._free.popleft()
            under_way = [entry, *self._queue, *(each for _, each in self._computing.values())]
            numbers = [each.task.number for each in [*under_way, *self._pushing.values()]]
            task = replace(
                entry.task,
                least_updates=max(0, self._num_counted - self._staleness.most_before),
                settled_below=min([*numbers, *self._kept, self._next]),
            )
            self._staleness.begin(task.number)
            self._computing[self._actors.compute(worker, task)] = (worker, entry)

    def _pump(self) -> None:
        """Waits for the next thing to happen, and does what follows from it."""
        self._assign()
        futures = [*self._computing, *self._pushing, *self._away, *self._snapshotting]
        if not futures:
            raise PeerLostError(
                f"None of the {self._actors.num_workers} workers of the parameter server is left. "
                "The first error in their logs says why."
            )
        ready = self._actors.wait(futures, self._timeout)
        if not ready:
            self._give_up()
        for future in ready:
            if future in self._computing:
                self._note_result(future)
            elif future in self._pushing:
                self._note_push(future)
            elif future in self._away:
                self._note_return(future)
            elif future in self._snapshotting:
                self._note_snapshot(future)
        self._assign()

    def _note_result(self, future: Any) -> None:
        worker, entry = self._computing.pop(future)
        try:
            result: Result | None = self._actors.result(future)
        except ActorLostError as error:
            entry.num_deaths += 1
            if entry.num_deaths >= _MOST_DEATHS:
                raise PeerLostError(
                    f"{entry.num_deaths} workers have ended while they computed batch "
                    f"{entry.task.number}, and it may be the cause: a worker's memory may not "
                    f"suffice for it. {error}"
                ) from error
            result = None
        if result is None:  # Or it died while it had nothing to do, and is there again, empty.
            self._take_back(entry)
            self._set_up_worker(worker)
            return
        self._free.append(worker)
        if result.pushes is None:
            self._take_back(entry)
            self._recover()
            return
        entry.result = result
        entry.pushes = {push: server for server, push in enumerate(result.pushes)}
        self._pushing.update(dict.fromkeys(result.pushes, entry))

    def _note_push(self, future: Any) -> None:
        entry = self._pushing.pop(future)
        try:
            life = self._actors.result(future)
        except ActorLostError:  # The worker, with whom the answer went.
            life = None
        if life != self._lives[entry.pushes.pop(future)]:
            self._take_back(entry)
            self._recover()
        elif not entry.pushes:
            self._count(entry)

    def _count(self, entry: _Entry) -> None:
        number = entry.task.number
        self._staleness.end(number)
        if entry.is_repair:
            return
        if entry.result is not None:
            self._done.append(entry.result)
        self._kept[number] = entry.task
        self._num_counted += 1
        self._num_since_snapshot += 1
        if self._num_since_snapshot >= self._snapshot_every and not self._snapshotting:
            self._num_since_snapshot = 0
            for server in range(self._actors.num_servers):
                self._snapshotting[self._actors.read(server)] = server

    def _take_back(self, entry: _Entry) -> None:
        """Has a batch computed again. What it has pushed may arrive, and then counts once."""
        self._staleness.end(entry.task.number)
        for push in entry.pushes:
            self._pushing.pop(push)
        entry.result, entry.pushes = None, {}
        self._queue.appendleft(entry)

    def _note_return(self, future: Any) -> None:
        worker = self._away.pop(future)
        try:
            self._actors.result(future)
        except ActorLostError:
            return  # It does not come again: Ray has given it up.
        self._free.append(worker)

    def _note_snapshot(self, future: Any) -> None:
        server = self._snapshotting.pop(future)
        values = self._actors.result(future)
        if values is None:
            return  # It has none: whoever asks it next finds out.
        self._snapshots[server] = values
        self._kept = {
            number: task
            for number, task in self._kept.items()
            if not all(held.has(number) for held in self._snapshots)
        }

    def _set_up_worker(self, worker: int) -> None:
        self._away[self._actors.set_up_worker(worker, self._variables)] = worker

    def _recover(self) -> None:
        """Gives servers that have begun anew their snapshots, and has what they lack done again."""
        servers = range(self._actors.num_servers)
        lives = self._finish([self._actors.life(server) for server in servers])
        lost = [server for server in servers if lives[server] is None]
        if not lost:
            return
        snapshots = [self._snapshots[server] for server in lost]
        begun = self._finish(
            [self._actors.set_up_server(*each) for each in zip(lost, snapshots, strict=True)]
        )
        for server, life in zip(lost, begun, strict=True):
            self._lives[server] = life
        # A server that is lost may have answered to some of a batch that others have still to.
        for entry in {id(entry): entry for entry in self._pushing.values()}.values():
            self._take_back(entry)
        under_way = {entry.task.number for entry in self._queue}
        under_way |= {entry.task.number for _, entry in self._computing.values()}
        for number, task in self._kept.items():
            if number not in under_way and not all(each.has(number) for each in snapshots):
                self._queue.append(_Entry(task, is_repair=True))

    def _finish(self, futures: Sequence[Any]) -> list[Any]:
        """Returns what futures of servers stand for, once all are there."""
        left = list(futures)
        while left:
            ready = self._actors.wait(left, self._timeout)
            if not ready:
                raise PeerLostError(
                    f"A parameter server has not answered for {self._timeout:g} seconds. The first "
                    "error in the logs says why."
                )
            left = [future for future in left if future not in ready]
        return _results(self._actors.result, futures)

    def _give_up(self) -> None:
        """Ends who does not answer; what they had is noticed as of others that have died."""
        if self._computing:
            for worker, _ in self._computing.values():
                self._actors.restart_worker(worker)
        elif self._pushing or self._snapshotting:
            for server in range(self._actors.num_servers):
                self._actors.restart_server(server)
        else:
            raise PeerLostError(
                f"No worker has come within {self._timeout:g} seconds. The logs say why, or the "
                "cluster has not as many free processors."
            )


def _results(read: Callable[[Any], Any], futures: Sequence[Any]) -> list[Any]:
    try:
        return [read(future) for future in futures]
    except ActorLostError as error:
        raise PeerLostError(
            f"A parameter server has ended for good: {error} Go on from a checkpoint."
        ) from error

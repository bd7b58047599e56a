"""The chief's dispatcher, which keeps track of batches and updates for each engine.

The number of a batch is its step in the training. The dispatcher gives a batch to a free worker,
and counts it once every server has made its update. If the worker ends, another one computes the
batch again, and servers that have made its update ignore the second one. If a server ends, it
restarts from its last snapshot. The chief keeps the batches since then, and workers compute them
again; the other servers have made those updates, and ignore them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training.parameter_server.messages import Result, ShardValues, Task
from keras_deepseek.training.parameter_server.workers import (
    ProcessEndedError,
    StalenessBound,
    Workers,
)

_MAX_LOSSES = 3
"""A batch whose result was lost so often may itself be the cause, and ends the training."""


@dataclass
class _Batch:
    task: Task
    is_repair: bool = False  # Counted before; computed again for a server that restarted.
    num_losses: int = 0
    result: Result | None = None
    pushes: dict[Any, int] = field(default_factory=dict)  # Unanswered pushes -> their server.


class Dispatcher:
    """Gives batches to workers within the staleness bound, and makes each batch's update once.

    `snapshot_every` is the number of updates between two snapshots of the servers; `None` if
    servers can't restart, and nothing is kept for them. Workers or servers are restarted after
    `timeout` seconds without any answer.
    """

    def __init__(
        self,
        workers: Workers,
        staleness: StalenessBound,
        *,
        snapshot_every: int | None,
        timeout: float,
    ) -> None:
        self._workers = workers
        self._staleness = staleness
        self._snapshot_every = snapshot_every
        self._timeout = timeout
        self._num_timeouts = 0  # In a row.
        self._variables: list[Array] = []
        self._next = 0  # The number of the next batch.
        self._num_counted = 0  # Updates that every server has made.
        self._num_since_snapshot = 0
        self._free: deque[int] = deque()
        self._queue: deque[_Batch] = deque()
        # Each by its future.
        self._computing: dict[Any, tuple[int, _Batch]] = {}
        self._pushing: dict[Any, _Batch] = {}
        self._setting_up: dict[Any, int] = {}
        self._snapshotting: dict[Any, int] = {}
        self._snapshots: list[ShardValues] = []
        # The ID of each server's run. Updates that were made in an earlier run may be lost.
        self._lives: list[Any] = []
        self._unsnapshotted: dict[int, Task] = {}  # Counted batches that some snapshot lacks.
        self._done: deque[Result] = deque()

    @property
    def num_open(self) -> int:
        """The number of batches given to `hand` whose results `wait` has not returned."""
        batches = [*self._queue, *(batch for _, batch in self._computing.values())]
        batches += self._pushed_batches()
        return len(self._done) + sum(not batch.is_repair for batch in batches)

    def begin(self, number: int, values: Sequence[ShardValues], variables: Sequence[Array]) -> None:
        """Sends the first values to servers and workers, and waits until all of them are ready.

        `number` is that of the first batch. `values` are those of each server, `variables` those of
        the model.
        """
        self._next = self._num_counted = number
        self._variables = list(variables)
        self.go_on(values)
        futures = [
            self._workers.set_up_server(server, shard_values)
            for server, shard_values in enumerate(values)
        ]
        self._lives = self._finish(futures)
        if not (self._free or self._setting_up):
            for worker in range(self._workers.num_workers):
                self._set_up_worker(worker)
        while self._setting_up:  # Each compiles its step before the first batch.
            self._pump()

    def go_on(self, values: Sequence[ShardValues]) -> None:
        """Takes values that `collect` returned as the snapshot from which servers restart."""
        self._snapshots = list(values)
        self._unsnapshotted.clear()
        self._snapshotting.clear()
        self._num_since_snapshot = 0

    def may_hand(self) -> bool:
        """Returns True if a worker would start at once on another batch."""
        return bool(self._free) and not self._queue and self._staleness.may_begin()

    def hand(self, batch: Any, rate: float | None) -> None:
        """Adds the next batch, a structure of NumPy arrays, to the queue.

        A learning rate of `None` means that the optimizer has a schedule.
        """
        self._queue.append(_Batch(Task(self._next, batch, rate)))
        self._next += 1
        self._assign()

    def wait(self) -> Result:
        """Waits until the next update is made; returns the result of its batch."""
        while not self._done:
            self._pump()
        return self._done.popleft()

    def collect(self) -> list[ShardValues]:
        """Waits until all updates are made; returns the values of each server."""
        while True:
            while self._queue or self._computing or self._pushing:
                self._pump()
            servers = range(self._workers.num_servers)
            values = self._finish([self._workers.read_server(server) for server in servers])
            if all(shard_values is not None for shard_values in values):
                return values
            self._recover_servers()

    def _assign(self) -> None:
        """Assigns queued batches to free workers, as far as the staleness bound allows."""
        while self._queue and self._free and self._staleness.may_begin():
            batch, worker = self._queue.popleft(), self._free.popleft()
            unfinished = [
                batch,
                *self._queue,
                *(computing for _, computing in self._computing.values()),
            ]
            numbers = [entry.task.number for entry in [*unfinished, *self._pushing.values()]]
            # No batch below the least of `settled_below` will be computed again.
            task = replace(
                batch.task,
                least_updates=max(0, self._num_counted - self._staleness.most_before),
                settled_below=min([*numbers, *self._unsnapshotted, self._next]),
            )
            self._staleness.begin(task.number)
            self._computing[self._workers.compute(worker, task)] = (worker, batch)

    def _pump(self) -> None:
        """Assigns batches, waits for an answer of any process, and handles all that have come."""
        self._assign()
        futures = [*self._computing, *self._pushing, *self._setting_up, *self._snapshotting]
        if not futures:
            raise PeerLostError(
                f"All {self._workers.num_workers} workers of the parameter server have ended, and "
                "none could be started again. The first error in their logs says why."
            )
        ready = self._workers.wait(futures, self._timeout)
        if not ready:
            self._restart_silent_processes()
            return
        self._num_timeouts = 0
        for future in ready:
            # A batch that is queued again drops its other pushes: then a future is in none.
            if future in self._computing:
                self._handle_result(future)
            elif future in self._pushing:
                self._handle_push(future)
            elif future in self._setting_up:
                self._handle_set_up(future)
            elif future in self._snapshotting:
                self._handle_snapshot(future)
        self._assign()

    def _handle_result(self, future: Any) -> None:
        """Waits for the pushes of a computed batch, or queues the batch again if it was lost."""
        worker, batch = self._computing.pop(future)
        try:
            result = self._workers.finish(worker, batch.task, future)
        except ProcessEndedError as error:
            batch.num_losses += 1
            if batch.num_losses >= _MAX_LOSSES:
                raise PeerLostError(
                    f"Batch {batch.task.number} was lost {batch.num_losses} times because the "
                    "worker that computed it ended. The first error in the logs says why. If "
                    "memory was too small, use a smaller batch size. If a parameter server ended, "
                    f"go on from a checkpoint: fit(..., resume=True). {error}"
                ) from error
            result = None
        if result is None:  # Lost, or the worker restarted while it was idle.
            self._queue_again(batch)
            self._set_up_worker(worker)
            return
        self._free.append(worker)
        if result.pushes is None:
            self._queue_again(batch)
            self._recover_servers()
            return
        batch.result = result
        batch.pushes = {push: server for server, push in enumerate(result.pushes)}
        self._pushing.update(dict.fromkeys(result.pushes, batch))
        if not batch.pushes:  # The update is already made.
            self._count(batch)

    def _handle_push(self, future: Any) -> None:
        batch = self._pushing.pop(future)
        try:
            life = self._workers.result(future)
        except ProcessEndedError:  # The worker owned the answer.
            life = None
        if life != self._lives[batch.pushes.pop(future)]:
            self._queue_again(batch)
            self._recover_servers()
        elif not batch.pushes:
            self._count(batch)

    def _count(self, batch: _Batch) -> None:
        """Counts a batch whose update every server has made, and asks for snapshots if due."""
        number = batch.task.number
        self._staleness.end(number)
        if batch.is_repair:
            return
        if batch.result is not None:
            self._done.append(batch.result)
        self._num_counted += 1
        if self._snapshot_every is None:
            return
        self._unsnapshotted[number] = batch.task
        self._num_since_snapshot += 1
        if self._num_since_snapshot >= self._snapshot_every and not self._snapshotting:
            self._num_since_snapshot = 0
            for server in range(self._workers.num_servers):
                self._snapshotting[self._workers.read_server(server)] = server

    def _queue_again(self, batch: _Batch) -> None:
        """Puts a batch back at the head of the queue, to be computed again.

        Pushes of the first computation may still reach a server, which then ignores those
        of the second.
        """
        self._staleness.end(batch.task.number)
        for push in batch.pushes:
            self._pushing.pop(push)
        batch.result, batch.pushes = None, {}
        self._queue.appendleft(batch)

    def _handle_set_up(self, future: Any) -> None:
        worker = self._setting_up.pop(future)
        try:
            self._workers.result(future)
        except ProcessEndedError:
            return  # The engine does not start this worker again; the others go on.
        self._free.append(worker)

    def _handle_snapshot(self, future: Any) -> None:
        server = self._snapshotting.pop(future)
        values = self._workers.result(future)
        if values is None:
            return  # The server restarted; the next push to it starts the recovery.
        self._snapshots[server] = values
        self._unsnapshotted = {
            number: task
            for number, task in self._unsnapshotted.items()
            if not all(snapshot.has(number) for snapshot in self._snapshots)
        }

    def _set_up_worker(self, worker: int) -> None:
        self._setting_up[self._workers.set_up_worker(worker, self._variables)] = worker

    def _pushed_batches(self) -> list[_Batch]:
        return list({id(batch): batch for batch in self._pushing.values()}.values())

    def _recover_servers(self) -> None:
        """Restores restarted servers from snapshots, and queues batches that these lack."""
        servers = range(self._workers.num_servers)
        lives = self._finish([self._workers.read_life(server) for server in servers])
        lost = [server for server in servers if lives[server] is None]
        if not lost:
            return
        snapshots = [self._snapshots[server] for server in lost]
        new_lives = self._finish(
            [
                self._workers.set_up_server(*server_snapshot)
                for server_snapshot in zip(lost, snapshots, strict=True)
            ]
        )
        for server, life in zip(lost, new_lives, strict=True):
            self._lives[server] = life
        # A lost server may have answered for a batch whose other answers are still to come.
        for batch in self._pushed_batches():
            self._queue_again(batch)
        unfinished = {batch.task.number for batch in self._queue}
        unfinished |= {batch.task.number for _, batch in self._computing.values()}
        for number, task in self._unsnapshotted.items():
            if number not in unfinished and not all(snapshot.has(number) for snapshot in snapshots):
                self._queue.append(_Batch(task, is_repair=True))

    def _finish(self, futures: Sequence[Any]) -> list[Any]:
        """Waits for the answers of servers, and returns them."""
        unfinished = list(futures)
        while unfinished:
            ready = self._workers.wait(unfinished, self._timeout)
            if not ready:
                raise PeerLostError(
                    f"A parameter server has not answered for {self._timeout:g} seconds. The first "
                    "error in the logs says why."
                )
            unfinished = [future for future in unfinished if future not in ready]
        try:
            return [self._workers.result(future) for future in futures]
        except ProcessEndedError as error:
            raise PeerLostError(
                f"A parameter server ended and could not be started again: {error} Go on from a "
                "checkpoint: fit(..., resume=True)."
            ) from error

    def _restart_silent_processes(self) -> None:
        """Restarts silent workers and servers; raises an error if a restart has not helped."""
        self._num_timeouts += 1
        if self._num_timeouts > 1:
            raise PeerLostError(
                f"No worker has answered for {self._num_timeouts * self._timeout:g} seconds, "
                "although they were restarted meanwhile. The first error in the logs of workers "
                "and servers says why."
            )
        if self._computing:
            self._workers.restart_workers([worker for worker, _ in self._computing.values()])
        elif self._pushing or self._snapshotting:
            for server in range(self._workers.num_servers):
                self._workers.restart_server(server)
        else:
            raise PeerLostError(
                f"No worker was ready within {self._timeout:g} seconds. See the workers' logs; or "
                "the cluster has too few free processors."
            )

"""Workers and servers of a parameter server without Ray: what happens, happens in any order.

A batch is a number, and its gradient the unit vector of that number: the weights of a server say
how often it has made which update. Whoever waits for futures has one of them come true, or one of
the actors die, as a random number generator says.
"""

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from keras_deepseek.training.parameter_server.messages import (
    Push,
    Result,
    ShardPlan,
    ShardValues,
    Task,
)
from keras_deepseek.training.parameter_server.shard_server import ShardServer
from keras_deepseek.training.parameter_server.workers import ProcessEndedError, Workers

NUM_BATCHES = 64


class _Numbers:
    def __init__(self) -> None:
        self.value = np.zeros(NUM_BATCHES)

    def assign(self, value: Any) -> None:
        self.value = np.array(value)


class _CountingShard:
    """Numbers that each gradient is added to, in place of Keras's variables and an optimizer."""

    def __init__(self) -> None:
        self.weights = [_Numbers()]
        self.optimizer = SimpleNamespace(variables=(), learning_rate=0.0)

    def update(self, gradients: Sequence[Any]) -> None:
        (numbers,) = self.weights
        numbers.assign(numbers.value + gradients[0])


class CountingServer(ShardServer):
    """A server with the bookkeeping of `ShardServer`, and numbers for its variables."""

    def _make(self, plan: Any) -> None:
        self._shard = _CountingShard()


def first_values() -> ShardValues:
    """Returns what a server begins with: no update."""
    return ShardValues([np.zeros(NUM_BATCHES)], [], [], num_updates=0)


class SimulatedActors(Workers):
    """Workers and servers in this process.

    Args:
        num_workers: integer.
        num_servers: integer.
        choose: `random.Random`.
        num_worker_deaths: integer. How many workers die, one after the other.
        num_server_deaths: integer. How many servers do.
    """

    def __init__(
        self,
        num_workers: int,
        num_servers: int,
        choose: random.Random,
        num_worker_deaths: int = 0,
        num_server_deaths: int = 0,
    ) -> None:
        self.num_workers = num_workers
        self.num_servers = num_servers
        self.servers = [CountingServer() for _ in range(num_servers)]
        self.handed: list[int] = []
        self.fails_on: int | None = None
        self._choose = choose
        self._deaths = {"worker": num_worker_deaths, "server": num_server_deaths}
        self._pending: dict[int, Callable[[], Any]] = {}
        self._found: dict[int, Any] = {}
        self._number = 0

    def _promise(self, act: Callable[[], Any]) -> int:
        self._number += 1
        self._pending[self._number] = act
        return self._number

    def set_up_worker(self, worker: int, variables: Any) -> int:
        return self._promise(lambda: None)

    def compute(self, worker: int, task: Task) -> int:
        self.handed.append(task.number)

        def act() -> Result:
            if task.batch == self.fails_on:
                raise ProcessEndedError("The worker has died of the batch.")
            pulled = [server.pull(None, 0) for server in self.servers]
            if None in pulled:
                return Result({}, [], None)
            gradient = np.zeros(NUM_BATCHES)
            gradient[task.batch] = 1.0
            dies_after = self.num_servers
            if self._is_to_die("worker"):
                dies_after = self._choose.randint(0, self.num_servers)
            pushes = [
                self._promise(
                    lambda server=server, parameters=parameters: self.servers[server].push(
                        Push(
                            task.number,
                            parameters.version,
                            [gradient],
                            [],
                            task.rate,
                            task.settled_below,
                        )
                    )
                )
                for server, parameters in list(enumerate(pulled))[:dies_after]
            ]
            if dies_after < self.num_servers:  # Some have the update, or will have it.
                raise ProcessEndedError("The worker has died.")
            return Result({"batch": float(task.batch)}, [], pushes)

        return self._promise(act)

    def finish(self, worker: int, task: Task, future: int) -> Any:
        return self.result(future)

    def restart_workers(self, workers: Sequence[int]) -> None:
        raise AssertionError("In a simulation all answer.")

    def restart_server(self, server: int) -> None:
        raise AssertionError("In a simulation all answer.")

    def set_up_server(self, server: int, values: ShardValues) -> int:
        plan = ShardPlan([], object, {})
        return self._promise(lambda: self.servers[server].set_up(plan, values))

    def read_life(self, server: int) -> int:
        return self._ask(server, "life")

    def read_server(self, server: int) -> int:
        return self._ask(server, "read")

    def _ask(self, server: int, name: str) -> int:
        def act() -> Any:
            return getattr(self.servers[server], name)()  # That of then: it may have died.

        return self._promise(act)

    def wait(self, futures: Sequence[int], timeout: float) -> list[int]:
        while not (ready := [future for future in futures if future in self._found]):
            # What nobody waits for may come true as well, such as a push of who has died.
            self._come_true(self._choose.choice(sorted(self._pending)))
        return ready[: self._choose.randint(1, len(ready))]

    def _come_true(self, future: int) -> None:
        if self._is_to_die("server"):
            self.servers[self._choose.randrange(self.num_servers)] = CountingServer()
        act = self._pending.pop(future)
        try:
            self._found[future] = act()
        except ProcessEndedError as error:
            self._found[future] = error

    def result(self, future: int) -> Any:
        outcome = self._found.pop(future)
        if isinstance(outcome, ProcessEndedError):
            raise outcome
        return outcome

    def _is_to_die(self, kind: str) -> bool:
        if self._deaths[kind] and self._choose.random() < 0.1:
            self._deaths[kind] -= 1
            return True
        return False

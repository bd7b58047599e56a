"""Workers and servers in this process: a function is computed when its future is asked to come."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np
from keras import ops


class EagerTasks:
    """A `TaskCluster` that computes in the order that it is told.

    Args:
        num_workers: integer.
        num_servers: integer.
    """

    def __init__(self, num_workers: int = 2, num_servers: int = 2) -> None:
        self.num_workers = num_workers
        self.num_servers = num_servers
        self.waiting: list[tuple[Future[Any], Any, Sequence[Any]]] = []
        self.is_settled = False

    def on_server(self, index: int) -> AbstractContextManager[Any]:
        assert 0 <= index < self.num_servers
        return nullcontext()

    def compile(self, function: Callable[..., Any]) -> Any:
        return function

    def run(self, function: Any, arguments: Sequence[Any]) -> None:
        function(*arguments)

    def schedule(self, function: Any, arguments: Sequence[Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        self.waiting.append((future, function, arguments))
        return future

    def compute(self, index: int = 0) -> None:
        """Computes one of the batches that wait."""
        future, function, arguments = self.waiting.pop(index)
        future.set_result(function(*arguments))

    def store(self, variable: keras.Variable, slot: Any, value: Any) -> None:
        stored = np.array(ops.convert_to_numpy(variable))
        stored[int(slot)] = ops.convert_to_numpy(ops.convert_to_tensor(value))
        variable.assign(stored)

    def load(self, variable: keras.Variable, slot: Any) -> Any:
        return variable.value[int(slot)]

    def settle(self) -> None:
        self.is_settled = True

"""The interface to workers and parameter servers on which a framework runs functions."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import keras


class ResultLostError(Exception):
    """The error for a worker that has ended before it sent a computed result."""


class TaskCluster(Protocol):
    """A cluster of workers, which run functions, and parameter servers, which hold variables.

    What runs on a server raises `PeerLostError` if one of them has ended.
    """

    num_workers: int
    num_servers: int

    def on_server(self, index: int) -> AbstractContextManager[Any]:
        """Context manager in which variables and operations are placed on a parameter server."""

    def compile(self, function: Callable[..., Any]) -> Any:
        """Compiles a function of tensor structures for the cluster."""

    def run(self, function: Any, arguments: Sequence[Any]) -> None:
        """Runs a function that `compile` returned on the servers that it names.

        The arguments are structures of arrays and `None`.
        """

    def schedule(self, function: Any, arguments: Sequence[Any]) -> "Future[Any]":
        """Schedules a compiled function on the next free worker; returns the future of its result.

        If that worker dies, another runs it from the start. If it dies after it computed the
        result, the future raises `ResultLostError`.
        """

    def store(self, variable: "keras.Variable", slot: Any, value: Any) -> None:
        """Writes a gradient into a variable's slot, inside of a compiled function.

        The variable's first axis is that of the slots. Of a sparse gradient, only the rows that are
        not zero are sent.
        """

    def load(self, variable: "keras.Variable", slot: Any) -> Any:
        """Reads the tensor in a variable's slot, inside of a compiled function."""

    def settle(self) -> None:
        """Waits until no worker is computing, and ignores the results."""

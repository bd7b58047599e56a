"""An interface to workers and parameter servers that an engine runs functions on."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import keras


class ResultLostError(Exception):
    """A worker has ended after it computed a result that it had not sent."""


class TaskCluster(Protocol):
    """Workers that run functions, and servers that hold variables.

    What runs on a server raises `PeerLostError` if one of them has ended.
    """

    num_workers: int
    num_servers: int

    def on_server(self, index: int) -> AbstractContextManager[Any]:
        """Returns a context in which variables are created and operations run on a server."""

    def compile(self, function: Callable[..., Any]) -> Any:
        """Returns a function of structures of tensors that is compiled into one call."""

    def run(self, function: Any, arguments: Sequence[Any]) -> None:
        """Runs a result of `compile` on the servers that it names.

        The arguments are structures of arrays and `None`.
        """

    def schedule(self, function: Any, arguments: Sequence[Any]) -> "Future[Any]":
        """Returns the future result of a `compile`d function, which runs on the next free worker.

        If that worker dies, another runs it from the start. If it dies after it computed the
        result, the future raises `ResultLostError`.
        """

    def store(self, variable: "keras.Variable", slot: Any, value: Any) -> None:
        """Writes a gradient into a slot of a variable, inside of a compiled function.

        The variable's first axis is that of the slots. Of a sparse gradient, only the rows that are
        not zero are sent.
        """

    def load(self, variable: "keras.Variable", slot: Any) -> Any:
        """Returns the tensor in a slot of a variable, inside of a compiled function."""

    def settle(self) -> None:
        """Waits until no worker computes any more, whatever the results are."""

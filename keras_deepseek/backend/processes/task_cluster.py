"""Workers and servers that an engine runs functions on, as a training sees them."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import keras


class ResultLostError(Exception):
    """A worker has ended that had computed something and had not told yet what."""


class TaskCluster(Protocol):
    """Workers that compute what they are given, and servers that hold variables.

    What runs on servers raises `PeerLostError` where one of them has ended.
    """

    num_workers: int
    num_servers: int

    def on_server(self, index: int) -> AbstractContextManager[Any]:
        """Returns a context in which variables are made, and operations run, on a server."""

    def compile(self, function: Callable[..., Any]) -> Any:
        """Returns a function that is compiled into one call.

        Args:
            function: Function of structures of tensors.
        """

    def run(self, function: Any, arguments: Sequence[Any]) -> None:
        """Runs a compiled function on the servers that it names.

        Args:
            function: What `compile` returned.
            arguments: Structures of arrays and `None`.
        """

    def schedule(self, function: Any, arguments: Sequence[Any]) -> "Future[Any]":
        """Returns the future of what a compiled function returns, on the next free worker.

        Where that one dies, another computes it from its beginning; where it dies when it has
        computed it, the future raises `ResultLostError`.

        Args:
            function: What `compile` returned.
            arguments: Structures of arrays and `None`.
        """

    def store(self, variable: "keras.Variable", slot: Any, value: Any) -> None:
        """Puts a gradient into a slot of a variable, inside of a compiled function.

        Of one that is sparse, the rows alone are sent that are not zero.

        Args:
            variable: Keras variable whose first axis is that of the slots.
            slot: int32 scalar.
            value: Tensor.
        """

    def load(self, variable: "keras.Variable", slot: Any) -> Any:
        """Returns the tensor in a slot of a variable, inside of a compiled function.

        Args:
            variable: Keras variable whose first axis is that of the slots.
            slot: int32 scalar.
        """

    def settle(self) -> None:
        """Waits until no worker computes anything any more, whatever becomes of it."""

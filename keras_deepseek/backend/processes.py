"""Processes that train together, as the engines under the backends join them.

A training holds these two and knows no engine: `Processes` between steps, `Replicas` inside of one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import keras

    from keras_deepseek.artifacts.signature import Array


class Replicas(Protocol):
    """Copies of a model, of which each computes rows of its own and all make the same update."""

    rank: Any
    """Which of them computes: an integer, or an integer tensor."""

    def sum(self, scalars: Sequence[Any], gradients: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the sums over all replicas, each of which calls it with as many tensors.

        Args:
            scalars: Small tensors, float32, whose sums are exact to rounding.
            gradients: Tensors, float32.

        Raises:
            PeerLostError: Another process has ended, or does not answer.
        """


class Processes(Protocol):
    """Processes that train together; each calls these functions in the same order.

    All of them raise `PeerLostError` where another process has ended, or does not answer.
    """

    rank: int
    world_size: int
    replicas: Replicas | None
    """The copies of the model that reduce inside of the step; `None` where one program does."""

    def broadcast(self, value: Any) -> Any:
        """Returns the value of rank 0, which can be pickled."""

    def broadcast_variables(self, variables: "Sequence[keras.Variable]") -> None:
        """Gives variables the values that they have on rank 0."""

    def gather(self, array: "Array") -> "list[Array]":
        """Returns the arrays of all ranks, in their order."""

    def agree(self, wish: bool) -> bool:
        """Returns whether any rank had the wish when it called this function the last time.

        The answer to one call is returned by the next, so that no step waits for it.
        """

    def agree_now(self, wish: bool) -> bool:
        """Returns whether any rank has the wish, now or the last time."""

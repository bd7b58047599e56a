"""Processes that train together, as the engines under the backends join them.

A training holds these two and knows no engine: `Processes` between steps, `Replicas` inside of one.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import keras

from keras_deepseek.backend.host_values import read_values
from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError, PeerLostError

if TYPE_CHECKING:
    from keras_deepseek.artifacts.signature import Array
    from keras_deepseek.backend.processes.gradient_compression import Compression


Result = TypeVar("Result")

Receive = Callable[[int, Any], None]
"""What is told of a gradient by its index as soon as it is known, in any order, or is not."""

FinishPart = Callable[[Sequence[Any], Receive | None], tuple[list[Any], list[Any]]]
"""A backward pass: from the sums of the scalars of all replicas, and who is to be told of gradients
on the way, to further scalars and to the gradients of this replica."""

ComputePart = Callable[[int, Any], tuple[list[Any], FinishPart]]
"""From the rank of a replica and its rows to small float32 tensors and to its backward pass.

All replicas return as many scalars and gradients as the others, float32 and of the same shapes.
"""


class Replicas(Protocol):
    """Copies of a step, of which each computes rows of its own and all make the same update."""

    is_compilable: bool
    """Whether the framework can compile a step as a whole that they are part of."""

    def own_random_numbers(self) -> "AbstractContextManager[None]":
        """Makes the framework's shared generator differ by replica until the block ends.

        Afterwards it is the same on all again, however many numbers each has drawn.
        """

    def count(self, num_rows: Any) -> Any:
        """Returns the number of the rows of all, a scalar.

        Args:
            num_rows: float32 scalar. That of the rows that this process has.
        """

    def sum(
        self, compute: ComputePart, batch: Any, variables: "Sequence[keras.Variable]"
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns the sums of what all replicas compute.

        Args:
            compute: `ComputePart`.
            batch: Structure of tensors, the rows that this process has; or `None` in it.
            variables: What the gradients are by.

        Returns:
            The sums of the scalars, exact to rounding, of those of the backward pass, and of the
            gradients.

        Raises:
            PeerLostError: Another process has ended, or does not answer.
        """


class RemoteReplicas(Replicas, Protocol):
    """Replicas of which each has a process, and a link to the others."""

    def own_variable(self, value: "Array", name: str) -> "keras.Variable":
        """Returns a float32 variable of which each replica has a value of its own.

        Args:
            value: Vector. The value that it begins with, the same on all.
            name: string. The name of the variable.
        """

    def read_own(self, variable: "keras.Variable") -> "Array":
        """Returns the values that the replicas of this process have of one of `own_variable`."""

    def write_own(self, variable: "keras.Variable", value: "Array") -> None:
        """Gives a variable of `own_variable` the values that `read_own` returned in this process.

        Args:
            variable: The variable.
            value: Vector.
        """

    def sum_compressed(
        self,
        compute: ComputePart,
        batch: Any,
        variables: "Sequence[keras.Variable]",
        compression: "Compression",
    ) -> tuple[list[Any], list[Any], list[Any], Callable[[], None]]:
        """Returns the sums of what all replicas compute, of gradients that are compressed.

        What compression takes from a gradient is added to the next one by who has compressed it,
        so that all of it arrives in the end. The sums are the same on all.

        Args:
            compute: `ComputePart`.
            batch: Structure of tensors, as for `sum`.
            variables: What the gradients are by.
            compression: `Compression`.

        Returns:
            The sums of the scalars, of those of the backward pass, of the gradients by the scale,
            and a function that assigns the residual: it is called where the step is not left out.
        """


class Processes(Protocol):
    """Processes that train together; each calls these functions in the same order.

    All of them raise `PeerLostError` where another process has ended, or does not answer.
    """

    rank: int
    world_size: int
    replicas: RemoteReplicas | None
    """The copies of the model that reduce inside of the step; `None` where there is one."""
    is_one_program: bool
    """Whether one program runs over the devices of all, and has the batches of all."""

    def broadcast(self, value: Any) -> Any:
        """Returns the value of rank 0, which can be pickled."""

    def broadcast_variables(self, variables: "Sequence[keras.Variable]") -> None:
        """Gives variables the values that they have on rank 0."""

    def gather(self, array: "Array") -> "list[Array]":
        """Returns the arrays of all ranks, in their order."""

    def whole_outputs(self, model: "keras.Model") -> "AbstractContextManager[None]":
        """Makes a model's `predict` return all rows on each rank, where one program has them."""

    def agree(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns which wishes any rank had when it called this function the last time.

        Between several processes the answer to one call is returned by the next, so that no step
        waits for it.
        """

    def agree_now(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns which wishes any rank has, now or the last time."""


class OneProcess:
    """A process that trains alone."""

    rank = 0
    world_size = 1
    replicas: RemoteReplicas | None = None
    is_one_program = False

    def broadcast(self, value: Any) -> Any:
        """Returns the value."""
        return value

    def broadcast_variables(self, variables: "Sequence[keras.Variable]") -> None:
        """Does nothing: they have the values of rank 0."""

    def gather(self, array: "Array") -> "list[Array]":
        """Returns the array, which is that of all ranks."""
        return [array]

    def whole_outputs(self, model: "keras.Model") -> AbstractContextManager[None]:
        """Does nothing: `predict` does so."""
        return nullcontext()

    def agree(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns the wishes: nobody else has any."""
        return list(wishes)

    def agree_now(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns the wishes: nobody else has any."""
        return list(wishes)


class OneReplicaEach:
    """What a process that is one replica needs no engine for."""

    is_one_program = False

    def own_variable(self, value: "Array", name: str) -> "keras.Variable":
        """Returns a float32 variable: it is this process's own."""
        return keras.Variable(value, dtype="float32", trainable=False, autocast=False, name=name)

    def read_own(self, variable: "keras.Variable") -> "Array":
        """Returns the value of a variable of `own_variable`."""
        return read_values([variable])[0]

    def write_own(self, variable: "keras.Variable", value: "Array") -> None:
        """Gives a variable of `own_variable` a value.

        Args:
            variable: The variable.
            value: Vector.
        """
        variable.assign(value)


class LocalReplicas:
    """What copies of a step on devices of this process need no engine for."""

    is_compilable = False
    """A compiler compiles for one device."""

    def own_random_numbers(self) -> AbstractContextManager[None]:
        """Does nothing: the copies draw one after the other, or by seeds of their own."""
        return nullcontext()

    def count(self, num_rows: Any) -> Any:
        """Returns the number of the rows of all, a scalar."""
        return num_rows


def check_place(engine: str, found: tuple[int, int], asked: tuple[int, int]) -> None:
    """Raises an error where an engine that runs already does so in another place.

    Args:
        engine: string. Its name.
        found: tuple of integers. The world size and the rank that it runs with.
        asked: tuple of integers. Those that were asked for.

    Raises:
        InvalidInputError: They differ.
    """
    if found != asked:
        raise InvalidInputError(
            f"{engine} runs as rank {found[1]} of {found[0]}; received rank={asked[1]}, "
            f"world_size={asked[0]}."
        )


def check_same_shapes(rank: int, everywhere: "Sequence[Sequence[Any]]") -> None:
    """Raises an error where ranks are about to sum different things, which would hang.

    Args:
        rank: integer. Which of them this process is.
        everywhere: The shapes of the tensors of each rank.

    Raises:
        InvalidInputError: They differ from those of this rank.
    """
    own = everywhere[rank]
    for other, shapes in enumerate(everywhere):
        if shapes != own:
            raise InvalidInputError(
                f"The models of the processes differ: rank {rank} has {len(own)} tensors, rank "
                f"{other} has {len(shapes)}, or others of other shapes, or they compress "
                "them otherwise. Build the same model on each, with the same arguments."
            )


def lost_peer_error(purpose: str, engine: str, error: BaseException) -> PeerLostError:
    """Returns what is raised in the place of an engine's error about another process.

    Args:
        purpose: string. What could not be done.
        engine: string. Its name.
        error: What it has raised.
    """
    lines = str(error).splitlines() or [type(error).__name__]
    # TensorFlow's first line says no more than that there was an error.
    cause = next((line for line in lines if "aborted by" in line), lines[0])
    return PeerLostError(
        f"This process could not {purpose}: another one has ended, or does not answer. The first "
        f"error in the logs of all says why. {engine}: {cause}"
    )


class NamingLostPeers(AbstractContextManager["NamingLostPeers"]):
    """Says in our words that a process is gone, where an engine finds it.

    Args:
        purpose: string. What can't be done then.
    """

    engine: str
    """The name of the engine."""

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose

    @staticmethod
    def is_of_peer(error: BaseException) -> bool:
        """Returns whether an error of the engine may be about another process."""
        raise NotImplementedError

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Raises `PeerLostError` in the place of what the engine has raised."""
        if error is not None and self.is_of_peer(error):
            raise lost_peer_error(self._purpose, self.engine, error) from error


def ask_rank_0(processes: Processes, function: "Callable[[], Result]") -> "Result":
    """Returns on each rank what a function returns on rank 0, where alone it is called.

    Args:
        processes: `Processes`.
        function: Function without arguments, whose result can be pickled.

    Raises:
        KerasDeepSeekError: The function has raised it.
    """
    found: Any = None
    if processes.rank == 0:
        try:
            found = function()
        except KerasDeepSeekError as error:
            found = error
    found = processes.broadcast(found)
    if isinstance(found, KerasDeepSeekError):
        raise found
    return cast("Result", found)

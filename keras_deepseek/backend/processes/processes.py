"""Interfaces for processes that train together, with what all backends share.

A training holds `Processes` between steps and `Replicas` inside of a step. It knows no engine.
"""

import abc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import keras

from keras_deepseek.backend.tensor_values import read_values
from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError, PeerLostError

if TYPE_CHECKING:
    from keras_deepseek.artifacts.signature import Array
    from keras_deepseek.backend.processes.gradient_compression import Compression
    from keras_deepseek.backend.processes.weight_parts import Division


Result = TypeVar("Result")

Receive = Callable[[int, Any], None]
"""Function of the index of a gradient and the gradient. It may be called as soon as one is known,
in any order, or not at all."""

ComputePart = Callable[[int, Any], tuple[list[Any], Callable[..., tuple[list[Any], list[Any]]]]]
"""A forward pass: function of the rank of a replica and its rows. It returns small float32 tensors
and the backward pass: function of the sums of all replicas' scalars, and of a `Receive` or `None`,
which returns further scalars and the gradients of this replica, `None` for those that the `Receive`
got. All replicas compute as many scalars and gradients, float32 and of the same shapes."""


class Replicas(Protocol):
    """The base class of step replicas, each of which computes its own rows of a batch.

    All replicas make the same update.
    """

    is_compilable: bool
    """True if the framework can compile a step as a whole that the replicas are part of."""

    def own_random_numbers(self) -> "AbstractContextManager[None]":
        """Context manager in which the framework's random numbers differ by replica.

        Afterwards it is the same on all again, however many numbers each has drawn.
        """

    def add_up(self, scalar: Any) -> Any:
        """Sums a float32 scalar over all replicas, such as the number of rows of each."""

    def sum(
        self, compute: ComputePart, batch: Any, variables: "Sequence[keras.Variable]"
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Sums the scalars, backward-pass scalars and gradients of all replicas.

        `batch` holds the rows of this process. The sums of scalars are exact to rounding. Raises
        `PeerLostError` if another process has ended, or does not answer.
        """


class RemoteReplicas(Replicas, Protocol):
    """The base class of replicas that each have their own process."""

    def own_variable(self, value: "Array", name: str) -> "keras.Variable":
        """Returns a float32 variable that differs by replica and begins as `value`, a vector."""

    def read_own(self, variable: "keras.Variable") -> "Array":
        """Returns the values on this process's replicas of a variable made by `own_variable`."""

    def write_own(self, variable: "keras.Variable", value: "Array") -> None:
        """Restores this process's values of a variable from what `read_own` returned."""

    def sum_compressed(
        self,
        compute: ComputePart,
        batch: Any,
        variables: "Sequence[keras.Variable]",
        compression: "Compression",
    ) -> tuple[list[Any], list[Any], list[Any], Callable[[], None]]:
        """Sums what all replicas compute, with compressed gradients.

        The sums of the gradients are divided by the scale, and are the same on all replicas. The
        last result is a function that assigns the residual: call it unless the step is skipped.
        Each process adds what compression removes from a gradient to the next one.
        """


class PartReplicas(RemoteReplicas, Protocol):
    """The base class of replicas that each update a part of the weights."""

    def sum_parts(
        self,
        compute: ComputePart,
        batch: Any,
        variables: "Sequence[keras.Variable]",
        division: "Division",
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Sums what all replicas compute, as `sum` does, but returns parts of the gradients.

        They are vectors: for each variable the piece that this process updates.
        """

    def share_parts(
        self, division: "Division", parts: Sequence[Any], variables: "Sequence[keras.Variable]"
    ) -> None:
        """Assigns all variables, from this process's piece of each of them, a float32 vector."""


class ProgramReplicas(RemoteReplicas, Protocol):
    """The base class of replicas that one program runs over the devices of all processes."""

    def divide_gradients(self, state: "Sequence[keras.Variable]") -> None:
        """Divides the summed gradients among the devices from now on, as `divide_variable` does.

        `state` is the divided state of the optimizer. Replicas don't need it, and would each make
        it whole.
        """

    def gather_weights(self, weights: "Sequence[keras.Variable]") -> None:
        """Makes updated weights whole on each device, which has only its part up to date."""


class Processes(abc.ABC):
    """The base class of the connection between processes that train together.

    All processes call these methods in the same order. Each method raises `PeerLostError` if
    another process has ended, or does not answer.
    """

    rank: int
    world_size: int
    replicas: RemoteReplicas | None = None
    """The replicas that sum inside of the step, or `None` if there is one."""
    is_one_program = False
    """True if one program runs over the devices of all processes, and has all their batches."""

    @abc.abstractmethod
    def broadcast(self, value: Any) -> Any:
        """Returns the value of rank 0, which must be picklable."""

    @abc.abstractmethod
    def broadcast_variables(self, variables: "Sequence[keras.Variable]") -> None:
        """Gives variables the values that they have on rank 0."""

    @abc.abstractmethod
    def gather(self, array: "Array") -> "list[Array]":
        """Returns the arrays of all ranks, in rank order."""

    def whole_outputs(self, model: "keras.Model") -> AbstractContextManager[None]:
        """Context manager in which a model's `predict` returns all rows on each rank, if it can."""
        return nullcontext()

    @abc.abstractmethod
    def all_reduce_flags(self, flags: Sequence[bool]) -> list[bool]:
        """Returns, for each flag such as to stop, True if any rank had it at the previous call.

        The answer comes one call later, so that no step waits for it. A process alone returns its
        own flags at once.
        """

    @abc.abstractmethod
    def all_reduce_flags_now(self, flags: Sequence[bool]) -> list[bool]:
        """Returns, for each flag, True if any rank has it now or had it at the previous call."""


class OneProcess(Processes):
    """A process that trains alone."""

    rank = 0
    world_size = 1

    def broadcast(self, value: Any) -> Any:
        return value

    def broadcast_variables(self, variables: "Sequence[keras.Variable]") -> None:
        pass

    def gather(self, array: "Array") -> "list[Array]":
        return [array]

    def all_reduce_flags(self, flags: Sequence[bool]) -> list[bool]:
        return list(flags)

    def all_reduce_flags_now(self, flags: Sequence[bool]) -> list[bool]:
        return list(flags)


class JoinedProcesses(Processes):
    """Processes that a framework has joined, which agree while a step runs."""

    translate_peer_errors: "type[PeerErrorTranslator]"
    """The context manager for errors of the framework."""

    _wait_for_answer: Callable[[], list[bool]] | None = None

    @abc.abstractmethod
    def _ask(self, wishes: Sequence[bool]) -> Callable[[], list[bool]]:
        """Asks all ranks for their wishes; returns a function that waits for the answer."""

    def all_reduce_flags(self, flags: Sequence[bool]) -> list[bool]:
        previous_answer = self._answer(len(flags))
        with self.translate_peer_errors("agree on whether to stop"):
            self._wait_for_answer = self._ask(flags)
        return previous_answer

    def all_reduce_flags_now(self, flags: Sequence[bool]) -> list[bool]:
        previous_answer = self.all_reduce_flags(flags)
        return [a or b for a, b in zip(previous_answer, self._answer(len(flags)), strict=True)]

    def _answer(self, count: int) -> list[bool]:
        """Returns the answer to the last `all_reduce_flags`, which is asked once only."""
        wait, self._wait_for_answer = self._wait_for_answer, None
        if wait is None:
            return [False] * count
        with self.translate_peer_errors("agree on whether to stop"):
            return wait()


class SingleReplica:
    """The methods of `RemoteReplicas` for a process with a single replica."""

    def own_variable(self, value: "Array", name: str) -> "keras.Variable":
        """Returns a float32 variable of this process."""
        return keras.Variable(value, dtype="float32", trainable=False, autocast=False, name=name)

    def read_own(self, variable: "keras.Variable") -> "Array":
        """Returns the value of a variable made by `own_variable`."""
        return read_values([variable])[0]

    def write_own(self, variable: "keras.Variable", value: "Array") -> None:
        """Assigns a vector to a variable made by `own_variable`."""
        variable.assign(value)


class LocalReplicas:
    """A mixin: the methods of `Replicas` that need no communication within one process."""

    is_compilable = False
    """`False`: a compiler compiles for one device."""

    def own_random_numbers(self) -> AbstractContextManager[None]:
        """Returns a context manager that does nothing.

        Replicas of one process draw in sequence, or by seeds of their own. Only replicas in several
        processes have to be given random numbers of their own.
        """
        return nullcontext()

    def add_up(self, scalar: Any) -> Any:
        """Returns `scalar`, because one process has the rows of all its devices."""
        return scalar


def check_rank(engine: str, actual: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raises `InvalidInputError` if the framework joined with another world size or rank."""
    if actual != expected:
        raise InvalidInputError(
            f"{engine} already runs as rank {actual[1]} of {actual[0]}; "
            f"received rank={expected[1]}, world_size={expected[0]}."
        )


def check_same_shapes(rank: int, everywhere: "Sequence[Sequence[Any]]") -> None:
    """Raises `InvalidInputError` if ranks would sum different tensors, which would hang."""
    own_shapes = everywhere[rank]
    for other, shapes in enumerate(everywhere):
        if shapes != own_shapes:
            raise InvalidInputError(
                f"The models of the processes differ: rank {rank} has {len(own_shapes)} tensors, "
                f"rank {other} has {len(shapes)}; or their shapes or their compression differ. "
                "Build the same model on each, with the same arguments."
            )


def lost_peer_error(purpose: str, engine: str, error: BaseException) -> PeerLostError:
    """Returns the `PeerLostError` that replaces a framework's error while it tried to `purpose`."""
    lines = str(error).splitlines() or [type(error).__name__]
    # TensorFlow's first line only says that there was an error.
    cause = next((line for line in lines if "aborted by" in line), lines[0])
    return PeerLostError(
        f"This process could not {purpose}: another one has ended, or does not answer. See the "
        f"first error in the logs of all processes. {engine}: {cause}"
    )


class PeerErrorTranslator(AbstractContextManager["PeerErrorTranslator"]):
    """A context manager that turns a framework's errors about other ranks into `PeerLostError`."""

    engine: str
    """The name of the engine."""

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose

    @staticmethod
    def is_of_peer(error: BaseException) -> bool:
        """Returns True if another rank may have caused a framework's error."""
        raise NotImplementedError

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Raises a `PeerLostError` in place of the framework's error."""
        if error is not None and self.is_of_peer(error):
            raise lost_peer_error(self._purpose, self.engine, error) from error


def ask_rank_0(processes: Processes, function: "Callable[[], Result]") -> "Result":
    """Calls a function on rank 0 only, and returns its picklable result on each rank.

    If the function raises a `KerasDeepSeekError`, each rank raises it.
    """
    result: Any = None
    if processes.rank == 0:
        try:
            result = function()
        except KerasDeepSeekError as error:
            result = error
    result = processes.broadcast(result)
    if isinstance(result, KerasDeepSeekError):
        raise result
    return cast("Result", result)

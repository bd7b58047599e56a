"""Which processes train together."""

from dataclasses import dataclass
from typing import Literal, get_args

from keras_deepseek.artifacts.errors import (
    InvalidInputError,
    NotSupportedError,
    unknown_name_message,
)

Strategy = Literal["allreduce", "parameter_server"]


@dataclass(frozen=True)
class ClusterSpec:
    """The strategy of a distributed training and this process's place in it.

    Args:
        strategy: `"allreduce"`, `"parameter_server"`, or `None` for one process alone.
            Defaults to `None`.
        world_size: integer. The number of processes that train. Defaults to `1`.
        rank: integer. Which of them this one is, from 0. Defaults to `0`.

    Raises:
        InvalidInputError: The strategy is unknown, or rank and world size contradict each other.
        NotSupportedError: The strategy needs more than one process, which this release can't run
            yet.

    Example:

    >>> ClusterSpec(strategy="allreduce", world_size=1, rank=0).world_size
    1
    """

    strategy: Strategy | None = None
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        known = get_args(Strategy)
        if self.strategy is not None and self.strategy not in known:
            raise InvalidInputError(
                unknown_name_message("distributed_strategy", self.strategy, known)
            )
        if type(self.world_size) is not int or type(self.rank) is not int:
            raise InvalidInputError(
                f"`world_size` and `rank` must be integers; received {self.world_size!r} and "
                f"{self.rank!r}."
            )
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise InvalidInputError(
                f"Expected world_size >= 1 and 0 <= rank < world_size; received "
                f"world_size={self.world_size}, rank={self.rank}."
            )
        if self.strategy is None and self.world_size > 1:
            raise InvalidInputError(
                f"world_size={self.world_size} needs a distributed_strategy: one of "
                f"{', '.join(known)}."
            )
        if self.world_size > 1 or self.strategy == "parameter_server":
            raise NotSupportedError(
                f"distributed_strategy={self.strategy!r} with world_size={self.world_size} can't "
                "run yet: this release trains in one process. Use world_size=1 with 'allreduce', "
                "or leave distributed_strategy out."
            )

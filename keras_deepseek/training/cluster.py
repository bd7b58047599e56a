"""Which processes train together."""

from dataclasses import dataclass
from typing import Literal, get_args

from keras_deepseek.artifacts.argument_check import check_integer
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
        # So is a frozen class to be written to, and NumPy's integers are not kept.
        object.__setattr__(self, "world_size", check_integer("world_size", self.world_size))
        object.__setattr__(self, "rank", check_integer("rank", self.rank, least=0))
        if self.rank >= self.world_size:
            raise InvalidInputError(
                f"Expected 0 <= rank < world_size; received world_size={self.world_size}, "
                f"rank={self.rank}."
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

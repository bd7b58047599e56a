"""The place of a process among the processes of a training."""

from dataclasses import dataclass
from typing import Literal, get_args

from keras_deepseek.artifacts.network_address import join_address, parse_address
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, unknown_name_message

Strategy = Literal["allreduce", "parameter_server"]


@dataclass(frozen=True)
class ClusterSpec:
    """The strategy of a distributed training, and the place of this process in it.

    `Trainer` makes one from its arguments and the environment: `Trainer.cluster`.

    Args:
        strategy: `"allreduce"`, `"parameter_server"`, or `None` for a single process. Defaults to
            `None`.
        world_size: integer. The number of processes, including parameter servers. Defaults to `1`.
        rank: integer. The number of this process, from 0. Defaults to `0`.
        local_rank: integer. The number of this process on its machine, from 0. Defaults to `0`.
        coordinator: string. `HOST:PORT` of the process with rank 0. Several processes need it.
            Defaults to `None`.
        task_type: `"chief"`, `"worker"` or `"ps"`. The type of this process in `TF_CONFIG`, if that
            is set. Defaults to `None`.
        workers: tuple of strings. The addresses of chief and workers in `TF_CONFIG`, by rank.
            Defaults to `()`.
        servers: tuple of strings. The addresses of the parameter servers in `TF_CONFIG`. Defaults
            to `()`.

    Raises:
        InvalidInputError: The strategy is unknown; rank and world size, or strategy and servers,
            contradict each other; or several processes have no coordinator.

    Example:

    >>> ClusterSpec("allreduce", world_size=2, rank=1, coordinator="10.0.0.1:29500").rank
    1
    """

    strategy: Strategy | None = None
    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    coordinator: str | None = None
    task_type: str | None = None
    workers: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_strategy(self.strategy)
        # A frozen class can be set this way only. NumPy integers become plain ones.
        object.__setattr__(self, "world_size", check_integer("world_size", self.world_size))
        for name in ("rank", "local_rank"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum=0))
            if getattr(self, name) >= self.world_size:
                raise InvalidInputError(
                    f"Expected 0 <= {name} < world_size; received world_size={self.world_size}, "
                    f"{name}={getattr(self, name)}."
                )
        if self.coordinator is not None:
            address = join_address(*parse_address("`coordinator`", self.coordinator))
            object.__setattr__(self, "coordinator", address)
        self._check_strategy_fits()

    def _check_strategy_fits(self) -> None:
        if self.strategy is None and (self.world_size > 1 or self.coordinator is not None):
            name = "coordinator" if self.world_size == 1 else "world_size"
            raise InvalidInputError(
                f"{name}={getattr(self, name)!r} needs a distributed_strategy: one of "
                f"{', '.join(get_args(Strategy))}."
            )
        if self.world_size > 1 and self.coordinator is None:
            raise InvalidInputError(
                f"{self.world_size} processes need the address of rank 0. Pass "
                "coordinator='HOST:PORT' with a free port of its machine, or set MASTER_ADDR and "
                "MASTER_PORT, or start the script with keras-deepseek launch."
            )
        if self.servers and self.strategy != "parameter_server":
            raise InvalidInputError(
                f"TF_CONFIG names parameter servers ({', '.join(self.servers)}); received "
                f"distributed_strategy={self.strategy!r}. Use 'parameter_server', or remove them "
                "from TF_CONFIG."
            )
        if self.task_type and self.strategy == "parameter_server" and not self.servers:
            raise InvalidInputError(
                "Received distributed_strategy='parameter_server', but TF_CONFIG names no "
                "parameter server. Add their addresses under 'ps', or use 'allreduce'."
            )


def check_strategy(strategy: Strategy | None) -> None:
    """Raises an error if a strategy is neither `None` nor a known name."""
    names = get_args(Strategy)
    if strategy is not None and strategy not in names:
        raise InvalidInputError(unknown_name_message("distributed_strategy", strategy, names))

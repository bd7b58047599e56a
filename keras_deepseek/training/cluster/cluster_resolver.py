"""The processes of a training, found from the arguments of `Trainer` and the environment."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_deepseek import backend
from keras_deepseek.artifacts.network_address import join_address, parse_address
from keras_deepseek.backend.protocols.distribution import KerasDistribution
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec, Strategy, check_strategy
from keras_deepseek.training.cluster.device import DeviceMap
from keras_deepseek.training.cluster.environment import (
    ClusterHints,
    Hint,
    Value,
    read_keras_distribution,
    read_kubernetes,
    read_tf_config,
    read_torchrun,
    starts_each_process,
)
from keras_deepseek.training.cluster.parameter_server import (
    ParameterServer,
    ServerSettings,
    resolve_settings,
    take_servers,
)
from keras_deepseek.training.cluster.slurm import is_slurm_task, read_slurm
from keras_deepseek.training.launch.rank_environment import STRATEGY

_logger = logging.getLogger(__name__)


def resolve_cluster(
    strategy: Strategy | None,
    world_size: int | None = None,
    rank: int | None = None,
    coordinator: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ClusterSpec:
    """Returns the place of this process among the processes of a training.

    A strategy of `None` trains alone: then the environment is only read for a warning if a launcher
    has started several processes. Arguments of `Trainer` that are `None` are read from the
    environment. Raises an `InvalidInputError` if hints are malformed, missing, or contradictory.
    """
    check_strategy(strategy)
    arguments = _read_arguments(world_size, rank, coordinator)
    if strategy is None:
        if arguments == ClusterHints():
            _warn_of_trainings_apart(environ)
        return ClusterSpec(
            None, world_size=world_size or 1, rank=rank or 0, coordinator=coordinator
        )
    all_hints = [arguments, *_read_environment(environ, arguments)]
    found_size, found_rank = _whole_place(all_hints)
    local_rank = _agree("local_rank", [hints.local_rank for hints in all_hints])
    address = _agree("coordinator", [hints.coordinator for hints in all_hints])
    tasks = next((hints for hints in all_hints if hints.task_type), ClusterHints())
    return ClusterSpec(
        strategy,
        world_size=found_size,
        rank=found_rank,
        local_rank=local_rank.value if local_rank else 0,
        coordinator=address.value if address else None,
        task_type=tasks.task_type,
        workers=tasks.workers,
        servers=tasks.servers,
    )


def choose_strategy(
    strategy: Any, *arguments: int | str | None, environ: Mapping[str, str] = os.environ
) -> Any:
    """Returns the user's strategy, or else the one of `keras-deepseek launch`.

    `arguments` are `world_size`, `rank` and `coordinator`. If one of them is not `None`, the
    launcher's strategy is not used.
    """
    launched = environ.get(STRATEGY) or None
    check_strategy(launched)  # type: ignore[arg-type]
    if strategy is None and all(argument is None for argument in arguments):
        return launched
    if strategy == "allreduce" and launched == "parameter_server":
        raise InvalidInputError(
            "Received distributed_strategy='allreduce', but keras-deepseek launch --strategy "
            "parameter_server started the script, as one chief. Leave one of the two out."
        )
    return strategy


def resolve_strategy(
    strategy: Any, world_size: int | None, rank: int | None, coordinator: str | None
) -> tuple[Any, ClusterSpec]:
    """Returns the strategy object, and the place of this process in the training.

    The user's strategy is a name, an object of Keras or of the framework, or `None`.
    """
    if isinstance(strategy, ParameterServer):
        strategy = "parameter_server"
    strategy_task = backend.current().distribution.read_strategy(strategy)
    if strategy_task is not None:
        strategy = "allreduce"
        names = "world_size", "rank", "coordinator"
        for name, argument, strategy_value in zip(
            names, (world_size, rank, coordinator), strategy_task, strict=True
        ):
            if argument not in (None, strategy_value):
                raise InvalidInputError(
                    f"Received {name}={argument!r}, but the strategy object runs with "
                    f"{strategy_value}. Leave {name} out."
                )
        world_size, rank, coordinator = strategy_task
    is_name = strategy is None or isinstance(strategy, str)
    strategy_name = strategy if is_name else None
    is_layout = isinstance(strategy, KerasDistribution)
    if is_layout and backend.current().distribution.count_processes() > 1:
        strategy_name = "allreduce"  # Its devices are those of all joined processes.
    return strategy, resolve_cluster(strategy_name, world_size, rank, coordinator)


def _read_arguments(world_size: Any, rank: Any, coordinator: Any) -> ClusterHints:
    size_hint = rank_hint = address_hint = None
    if world_size is not None:
        size = check_integer("world_size", world_size)
        size_hint = Hint(size, f"the argument world_size={size}")
    if rank is not None:
        number = check_integer("rank", rank, minimum=0)
        rank_hint = Hint(number, f"the argument rank={number}")
    if coordinator is not None:
        address = join_address(*parse_address("`coordinator`", coordinator))
        address_hint = Hint(address, f"the argument coordinator={coordinator!r}")
    return ClusterHints(world_size=size_hint, rank=rank_hint, coordinator=address_hint)


def _read_environment(environ: Mapping[str, str], arguments: ClusterHints) -> list[ClusterHints]:
    launchers = [read_torchrun(environ), read_tf_config(environ), read_keras_distribution(environ)]
    if starts_each_process(environ):
        return launchers
    # A batch script of SLURM looks like a task. It is ignored if another source has the place.
    has_place = any(_is_whole(hints) for hints in (arguments, *launchers))
    slurm = ClusterHints() if has_place and not is_slurm_task(environ) else read_slurm(environ)
    return [*launchers, slurm, read_kubernetes(environ)]


def _is_whole(hints: ClusterHints) -> bool:
    """Returns True if hints alone say which process of how many this one is."""
    is_alone = hints.world_size is not None and hints.world_size.value == 1
    return is_alone or (hints.world_size is not None and hints.rank is not None)


def _whole_place(all_hints: Sequence[ClusterHints]) -> tuple[int, int]:
    """Returns world size and rank, or raises an error that names the missing one of them."""
    world_size = _agree("world_size", [hints.world_size for hints in all_hints])
    rank = _agree("rank", [hints.rank for hints in all_hints])
    if world_size is None:
        coordinator = _agree("coordinator", [hints.coordinator for hints in all_hints])
        hint = rank or coordinator
        if hint is not None:
            raise InvalidInputError(
                f"Received {hint.origin}, but not the number of processes. Pass world_size to "
                "the Trainer, or set WORLD_SIZE."
            )
        return 1, 0
    if rank is None:
        if world_size.value > 1:
            raise InvalidInputError(
                f"Received {world_size.origin}, but not the rank of this process. Pass rank to the "
                "Trainer, or set RANK."
            )
        return 1, 0
    if rank.value >= world_size.value:
        raise InvalidInputError(
            f"Expected 0 <= rank < world_size; received {world_size.origin} and {rank.origin}."
        )
    return world_size.value, rank.value


def _agree(field: str, hints: Sequence[Hint[Value] | None]) -> Hint[Value] | None:
    """Returns the value on which all stated hints agree, or else the first derived value."""
    stated = [hint for hint in hints if hint is not None and not hint.is_derived]
    for other in stated[1:]:
        if other.value != stated[0].value:
            raise InvalidInputError(
                f"Received two different values of {field}: {stated[0].origin}, and "
                f"{other.origin}. Unset the wrong one."
            )
    if stated:
        return stated[0]
    return next((hint for hint in hints if hint is not None), None)


def _warn_of_trainings_apart(environ: Mapping[str, str]) -> None:
    """Logs a warning if a launcher has started several processes, which will train alone."""
    try:
        all_hints = _read_environment(environ, ClusterHints())
    except InvalidInputError:  # The user did not ask for several processes.
        return
    sizes = [hints.world_size for hints in all_hints if hints.world_size is not None]
    origin = next((size.origin for size in sizes if size.value > 1), None)
    if origin is not None:
        _warn_once(origin)


@functools.cache
def _warn_once(origin: str) -> None:
    _logger.warning(
        "%s, but no distributed_strategy is given: each process trains alone, on all data. To "
        "train together, use Trainer(..., distributed_strategy='allreduce').",
        origin,
    )


@dataclass(frozen=True)
class ResolvedCluster:
    """The processes of a training, found from arguments and environment.

    The strategy is a name, an object of Keras or of the framework, or `None`. `servers` is `None`
    unless it is a parameter server.
    """

    strategy: Any
    spec: ClusterSpec
    servers: ServerSettings | None


@dataclass(frozen=True)
class ClusterOptions:
    """The options of a trainer's devices and processes. `Trainer` documents them for users."""

    device_map: DeviceMap | None = None
    distributed_strategy: Any = None
    world_size: int | None = None
    rank: int | None = None
    coordinator: str | None = None
    gradient_compression: Any = None
    shard_optimizer: bool = False

    def __post_init__(self) -> None:
        check_boolean("shard_optimizer", self.shard_optimizer)

    def resolve(self, default_strategy: str | None = None) -> ResolvedCluster:
        """Returns the processes of the training, from the options and the environment.

        `default_strategy` is the strategy if nothing else names one.
        """
        task = self.world_size, self.rank, self.coordinator
        strategy = choose_strategy(take_servers(self.distributed_strategy), *task)
        strategy = strategy or default_strategy
        servers = resolve_settings(strategy)
        strategy, spec = resolve_strategy(strategy, *task)
        return ResolvedCluster(strategy, spec, servers)

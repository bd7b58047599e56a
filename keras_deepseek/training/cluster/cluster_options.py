"""The arguments of `Trainer` about its devices and processes."""

from dataclasses import dataclass
from typing import Any

from keras_deepseek.training.cluster.cluster_resolver import choose_strategy, resolve_strategy
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.device import DeviceMap
from keras_deepseek.training.cluster.parameter_server import (
    ServerSettings,
    resolve_settings,
    take_servers,
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

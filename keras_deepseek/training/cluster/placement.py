"""Where a training takes place: on one device, or spread over several of this process.

Spread are the rows of each batch, or the layers of the model.
"""

import contextlib
from typing import Any, TypeAlias

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.metrics import given_metric_variables
from keras_deepseek.backend.processes.processes import Replicas
from keras_deepseek.backend.protocols.distribution import KerasDistribution
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training.cluster.cluster_spec import Strategy
from keras_deepseek.training.cluster.device import (
    DeviceMap,
    choose_devices,
    choose_layer_devices,
    default_kind,
    device_of_rank,
)
from keras_deepseek.training.cluster.layer_placement import LayerPlacement

DistributedStrategy: TypeAlias = Strategy | KerasDistribution | Any


class Placement:
    """The device, or what spreads over several, of a trainer's model and data.

    Args:
        device_map: dict, as `Trainer` takes it, or `None`.
        strategy: `"allreduce"`: all devices, where the backend can spread a step over them. Or one
            of Keras's distributions, a strategy of `tf.distribute`, or `None`.
        local_rank: integer. Which of the machine's processes this one is, where each makes the step
            on a device of its own. Defaults to `None`.

    Raises:
        InvalidInputError: A device is not there, or named beside a distribution over several.
        NotSupportedError: The backend knows no distributions, or has layers on one device alone.
    """

    def __init__(
        self,
        device_map: DeviceMap | None,
        strategy: DistributedStrategy | None,
        local_rank: int | None = None,
    ) -> None:
        count_devices = backend.current().devices.count_devices
        self.device: str | None = None
        self.distribution: KerasDistribution | None = None
        self.devices: Replicas | None = None
        self.has_own_distribution = isinstance(strategy, KerasDistribution)
        """Whether a user says how variables and batches are laid out."""
        self.layers: LayerPlacement | None = None
        by_layer = choose_layer_devices(device_map, count_devices) if device_map else None
        if by_layer:
            self._divide(by_layer, strategy, local_rank)
            return
        if device_map:
            chosen = choose_devices(device_map, count_devices)
            self.device = chosen[0]
            if len(chosen) > 1:
                self._share(chosen, strategy)
                return
        elif local_rank is not None:
            self.device = device_of_rank(local_rank, count_devices)
        self.kind = (self.device or default_kind(count_devices)).split(":")[0]
        if isinstance(strategy, KerasDistribution):
            self.distribution = strategy
        elif strategy == "allreduce":
            self.distribution = backend.current().distribution.spread_over_devices()
        is_on_one = strategy in (None, "parameter_server") or local_rank is not None
        if self.distribution is None and not is_on_one:
            self.devices = backend.current().distribution.replicate_over_devices(strategy)
        if self.distribution is None and self.devices is None:
            return
        if self.device is not None:
            raise InvalidInputError(
                f"device_map names one device, {self.device}, and distributed_strategy spreads the "
                "training over several. Give one of the two."
            )
        if self.distribution is not None:
            backend.current().distribution.distributed(
                self.distribution
            )  # It says where that can't be.

    def _share(self, devices: list[str], strategy: DistributedStrategy | None) -> None:
        """Divides the rows of each batch among devices, of which the first holds the model."""
        if strategy is not None:
            raise InvalidInputError(
                f"device_map names several devices, {devices}, and divides each batch among them; "
                "so does a distributed_strategy. Give one of the two."
            )
        self.kind = devices[0].split(":")[0]
        self.distribution = backend.current().distribution.spread_over_devices(devices)
        if self.distribution is None:
            self.devices = backend.current().distribution.replicate_over_devices(devices)

    def _divide(
        self, by_layer: dict[str, str], strategy: DistributedStrategy | None, local_rank: int | None
    ) -> None:
        """Divides the layers of the model among devices, of which the first is for the others."""
        if strategy is not None or local_rank is not None:
            raise InvalidInputError(
                f"device_map names devices by layers, {by_layer}, of one process that has all of "
                "the model; a distributed_strategy has several copies of it. Give one of the two."
            )
        self.layers = LayerPlacement(by_layer)
        self.device = self.layers.default
        self.kind = self.device.split(":")[0]

    def in_making(self) -> contextlib.AbstractContextManager[object]:
        """Returns a context to build a model in: in the host's memory, if no device holds it."""
        return backend.current().devices.on_device("cpu:0") if self.layers else self.in_use()

    def in_use(self, model: keras.Model | None = None) -> contextlib.AbstractContextManager[object]:
        """Returns a context in which Keras creates variables and computes there.

        Args:
            model: `keras.Model`, compiled, to use in it. Defaults to `None`.
        """
        if self.distribution is not None:
            return backend.current().distribution.distributed(self.distribution)
        if self.layers is not None and model is not None:
            return self.layers.in_use(model)
        return (
            backend.current().devices.on_device(self.device)
            if self.device
            else contextlib.nullcontext()
        )

    def place(self, model: keras.Model) -> None:
        """Moves what a compiled model has already to where it is trained.

        Args:
            model: `keras.Model`, compiled.

        Raises:
            InvalidInputError: It has no layer that one of a device's patterns matches.
            NotSupportedError: It was made under a strategy of `tf.distribute` with several copies.
        """
        num_replicas = backend.current().distribution.count_replicas(model)
        if num_replicas > 1:  # Their losses and norms would each be of a part of the batch.
            raise NotSupportedError(
                f"Model {model.name!r} was made under a strategy of tf.distribute with "
                f"{num_replicas} copies, and a Trainer trains one. Make it outside of the "
                "strategy's scope, and give the strategy to the Trainer; or train by model.fit."
            )
        if self.layers is not None:
            self.layers.check(model)
        if self.distribution is None:
            return
        variables = (
            *model.variables,
            *model.optimizer.variables,
            *model.metrics_variables,
            *given_metric_variables(model),
        )
        with self.in_use():
            backend.current().distribution.place_variables(variables)

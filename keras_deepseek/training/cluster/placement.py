"""The devices of a training: one, or several that divide the batches or the layers."""

import contextlib
import logging
import re
from typing import Any, TypeAlias

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.loss_and_metrics import given_metric_variables
from keras_deepseek.backend.keras_private.optimizers import plain_optimizer, weight_slots
from keras_deepseek.backend.keras_private.variables import layout_paths
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

_logger = logging.getLogger(__name__)
_OUTPUT = "/output"  # The end of a path in a layout map that means the outputs of a layer.

DistributedStrategy: TypeAlias = Strategy | KerasDistribution | Any


class Placement:
    """The devices of a trainer's model and data.

    The strategy is `"allreduce"`, for all devices if the backend can use them in one process; one
    of Keras's distributions; a strategy of `tf.distribute`; or `None`. `local_rank` is the rank on
    this machine, if each process has a device of its own.
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
        self.replicas: Replicas | None = None
        self.has_own_distribution = isinstance(strategy, KerasDistribution)
        """True if the user defines the layout of variables and batches."""
        self.layers: LayerPlacement | None = None
        by_layer = choose_layer_devices(device_map, count_devices) if device_map else None
        if by_layer:  # The map has a device for each pattern of layer names.
            self._place_layers(by_layer, strategy, local_rank)
            return
        if device_map:
            chosen = choose_devices(device_map, count_devices)
            self.device = chosen[0]
            if len(chosen) > 1:  # The map has several devices: each computes rows of a batch.
                self._divide_batches(chosen, strategy)
                return
        elif local_rank is not None:  # This process has a device of its own.
            self.device = device_of_rank(local_rank, count_devices)
        self.kind = (self.device or default_kind(count_devices)).split(":")[0]
        self._use_strategy(strategy, is_one_of_several=local_rank is not None)
        uses_several_devices = self.distribution is not None or self.replicas is not None
        if uses_several_devices and self.device is not None:
            raise InvalidInputError(
                f"device_map has one device, {self.device}, but distributed_strategy uses several. "
                "Leave one of the two out."
            )
        if self.distribution is not None:
            # Raises an error if the backend does not support this distribution.
            backend.current().distribution.distributed(self.distribution)

    def _use_strategy(
        self, strategy: DistributedStrategy | None, *, is_one_of_several: bool
    ) -> None:
        """Sets up the devices of a strategy: by a layout of Keras, or else by replicas."""
        if isinstance(strategy, KerasDistribution):
            self.distribution = strategy
        elif strategy == "allreduce":
            self.distribution = backend.current().distribution.spread_over_devices()
        needs_one_device = strategy in (None, "parameter_server") or is_one_of_several
        if self.distribution is None and not needs_one_device:
            self.replicas = backend.current().distribution.replicate_over_devices(strategy)

    def _divide_batches(self, devices: list[str], strategy: DistributedStrategy | None) -> None:
        """Sets up devices that divide the rows of each batch. The first device holds the model."""
        if strategy is not None:
            raise InvalidInputError(
                f"device_map has several devices, {devices}, and divides each batch among them; "
                "distributed_strategy does so too. Leave one of the two out."
            )
        self.kind = devices[0].split(":")[0]
        self.distribution = backend.current().distribution.spread_over_devices(devices)
        if self.distribution is None:
            self.replicas = backend.current().distribution.replicate_over_devices(devices)

    def _place_layers(
        self, by_layer: dict[str, str], strategy: DistributedStrategy | None, local_rank: int | None
    ) -> None:
        """Sets up devices that divide the layers of the model.

        The first device is that of all other layers.
        """
        if strategy is not None or local_rank is not None:
            raise InvalidInputError(
                f"device_map has devices for layers, {by_layer}, which divides one model; a "
                "distributed_strategy makes several copies of it. Leave one of the two out."
            )
        self.layers = LayerPlacement(by_layer)
        self.device = self.layers.default
        self.kind = self.device.split(":")[0]

    def while_building(self) -> contextlib.AbstractContextManager[object]:
        """Returns a context manager for building a model, in host memory if devices divide it."""
        return backend.current().devices.on_device("cpu:0") if self.layers else self.in_use()

    def in_use(self, model: keras.Model | None = None) -> contextlib.AbstractContextManager[object]:
        """Returns a context manager in which Keras creates variables and computes on the devices.

        `model` is the compiled model that is used inside.
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
        """Moves the variables of a compiled model to the devices of the training."""
        num_replicas = backend.current().distribution.count_replicas(model)
        # The loss and the gradient norm of a copy would be those of a part of the batch.
        if num_replicas > 1:
            raise NotSupportedError(
                f"Model {model.name!r} was made under a strategy of tf.distribute with "
                f"{num_replicas} copies, but a Trainer needs a model without copies. Make it "
                "outside the strategy's scope, and pass the strategy to the Trainer; or train by "
                "model.fit."
            )
        if self.layers is not None:
            self.layers.check(model)
        if self.distribution is None:
            return
        if isinstance(self.distribution, keras.distribution.ModelParallel):
            _check_layouts(model, layout_paths(self.distribution))
        metric_variables = [*model.metrics_variables, *given_metric_variables(model)]
        distribution = backend.current().distribution
        with self.in_use():
            distribution.place_variables(model.variables)
            optimizer = plain_optimizer(model.optimizer)
            if optimizer.built and not getattr(optimizer, "optimizers", None):
                for slot, weight in weight_slots(optimizer):
                    if slot.shape == weight.shape:
                        distribution.place_like(slot, weight)
            distribution.place_variables([*model.optimizer.variables, *metric_variables])


def _check_layouts(model: keras.Model, patterns: list[str]) -> None:
    """Raises an error if the layouts of a distribution are for no weight of a model."""
    paths = [variable.path for variable in model.variables]
    unmatched = [
        pattern
        for pattern in sorted(set(patterns) - set(paths))
        if not pattern.endswith(_OUTPUT) and not any(re.fullmatch(pattern, path) for path in paths)
    ]
    if not unmatched:
        return
    message = (
        f"{len(unmatched)} of {len(patterns)} layouts, such as that of {unmatched[0]!r}, are for "
        f"no weight of model {model.name!r}, which has {paths[0]!r}, for example. Keras counts the "
        "layers without a name: give them names, or make the layouts of the model itself."
    )
    if len(unmatched) == len(patterns):
        raise InvalidInputError(message)
    _logger.warning("%s", message)

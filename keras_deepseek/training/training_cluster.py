"""The processes that train together, joined, and the devices of this one."""

from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.training.cluster.cluster_options import ClusterOptions
from keras_deepseek.training.cluster.placement import Placement
from keras_deepseek.training.cluster.start_processes import start_processes
from keras_deepseek.training.cluster.step_replicas import find_replicas
from keras_deepseek.training.parameter_server.chief import Chief
from keras_deepseek.training.step.gradients.gradient_residual import make_residual
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.training_step import Parallelism


class TrainingCluster:
    """The processes that train together, joined, and the devices of this one."""

    def __init__(self, options: ClusterOptions) -> None:
        resolved = options.resolve()
        self.spec = resolved.spec
        self.chief = None if resolved.servers is None else Chief(resolved.servers, self.spec)
        """The chief of a parameter server, or `None`."""
        self.processes = self.chief or start_processes(self.spec)
        self.residual = make_residual(options.gradient_compression, self.processes)
        has_own_device = self.processes.world_size > 1 and not self.processes.is_one_program
        local_rank = self.spec.local_rank if has_own_device else None
        self.placement = Placement(options.device_map, resolved.strategy, local_rank)

    def start_workers(
        self,
        trainer: Any,
        make_model: Callable[[], keras.Model] | None,
        options: StepOptions,
        policy: keras.DTypePolicy | None,
    ) -> Parallelism:
        """Returns the parallelism of a trainer's steps; starts the workers of a parameter server.

        `make_model` built the trainer's model; it is `None` if the user gave the model itself.
        """
        worker_step = None
        if self.chief is not None:
            kind = self.placement.kind
            worker_step = self.chief.serve(trainer, make_model, kind, options, policy)
        layers, is_compressed = self.placement.layers, self.residual is not None
        return Parallelism(
            replicas=find_replicas(
                trainer.model, self.processes, self.placement, is_compressed=is_compressed
            ),
            residual=self.residual,
            devices=self.placement.devices,
            place_layers=None if layers is None else layers.begin,
            worker_step=worker_step,
            run_workers=None if self.chief is None else self.chief.training,
        )

"""The processes that train together, joined, and the devices of this one."""

import logging
from collections.abc import Callable
from typing import Any, cast

import keras

from keras_deepseek.backend.keras_private.trainers import overrides_train_step
from keras_deepseek.backend.processes.processes import (
    PartReplicas,
    Processes,
    ProgramReplicas,
    RemoteReplicas,
)
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training.cluster.cluster_resolver import ClusterOptions
from keras_deepseek.training.cluster.placement import Placement
from keras_deepseek.training.cluster.start_processes import start_processes
from keras_deepseek.training.parameter_server.chief import Chief
from keras_deepseek.training.step.gradients.gradient_residual import make_residual
from keras_deepseek.training.step.gradients.optimizer_layout import OptimizerLayout
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.training_step import Parallelism

_logger = logging.getLogger(__name__)


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
        self.shards = self._make_shards() if options.shard_optimizer else None
        """The shards of the optimizer's state, or `None` if each process has the whole state."""

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
        if self.shards is not None:
            clips_weights = (options.gradient_clip or ("",))[0] in ("norm", "adaptive")
            self.shards.prepare(trainer.model, by_weight=clips_weights)
        replicas = find_replicas(
            trainer.model, self.processes, self.placement, is_compressed=is_compressed
        )
        return Parallelism(
            replicas=replicas,
            residual=self.residual,
            parts=self.parts,
            share=None if self.shards is None or replicas is None else self.shards.share,
            devices=self.placement.replicas,
            place_layers=None if layers is None else layers.begin,
            worker_step=worker_step,
            run_workers=None if self.chief is None else self.chief.training,
        )

    @property
    def parts(self) -> OptimizerParts | None:
        """The shards of this process, where each process updates its part of the weights."""
        return self.shards if isinstance(self.shards, OptimizerParts) else None

    def _make_shards(self) -> OptimizerParts | OptimizerLayout | None:
        """Returns the shards for `shard_optimizer=True`; `None` on the one device of a process."""
        if self.residual is not None:
            raise NotSupportedError(
                "shard_optimizer=True does not support gradient_compression. Leave one of the two "
                "out."
            )
        if self.placement.distribution is not None:
            return OptimizerLayout(cast("ProgramReplicas | None", self.processes.replicas))
        if self.processes.replicas is not None:
            return OptimizerParts(self.processes, cast("PartReplicas", self.processes.replicas))
        if self.chief is not None:
            raise NotSupportedError(
                "shard_optimizer=True shards the optimizer's state between the processes of "
                "distributed_strategy='allreduce'. Parameter servers divide it in any case: leave "
                "it out."
            )
        _logger.warning(
            "shard_optimizer=True: one process trains, and keeps the whole state of the optimizer."
        )
        return None


def find_replicas(
    model: keras.Model, processes: Processes, placement: Placement, *, is_compressed: bool
) -> RemoteReplicas | None:
    """Returns a step's replicas in other processes, or `None` if there are none.

    If one program runs over the devices of all processes, its compiler may divide a step itself:
    then there are none. Compressed gradients need replicas.
    """
    if not processes.is_one_program:
        return processes.replicas
    reasons = {
        "a distribution of your own": placement.has_own_distribution,
        "a model with a train_step of its own": overrides_train_step(model),
        "run_eagerly=True or jit_compile=False": model.run_eagerly or not model.jit_compile,
    }
    reason = next((name for name, is_so in reasons.items() if is_so), None)
    if reason is None:
        return processes.replicas
    if is_compressed:
        raise NotSupportedError(
            f"gradient_compression is not supported on {keras.backend.backend()} with {reason}: "
            "its compiler divides such a step, and decides where and how gradients are summed."
        )
    return None

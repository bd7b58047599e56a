"""The processes, devices and workers that compute each training step together."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from keras_deepseek.backend.processes.processes import RemoteReplicas, Replicas
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual


@dataclass(frozen=True)
class Parallelism:
    """The processes, devices and workers that compute each training step together.

    Args:
        replicas: `RemoteReplicas`, one in each process, that divide the rows of a batch.
        residual: `GradientResidual` if gradients are compressed between processes.
        devices: `Replicas` on devices of this process that divide the rows of a batch.
        place_layers: Function of the model that moves its layers to their devices, if these divide
            the model. It takes `is_in_step`, true within the first step.
        worker_step: Function of a batch that has it computed by a worker of a parameter server, and
            returns logs.
        run_workers: Function of the arguments of `model.fit` that returns a context manager in
            which these workers run.
    """

    replicas: RemoteReplicas | None = None
    residual: GradientResidual | None = None
    devices: Replicas | None = None
    place_layers: Callable[..., None] | None = None
    worker_step: Callable[[Any], dict[str, Any]] | None = None
    run_workers: Callable[[dict[str, Any]], AbstractContextManager[None]] | None = None

    @property
    def divides_batches(self) -> bool:
        """True if processes or devices divide the rows of each batch."""
        return self.replicas is not None or self.devices is not None

    @property
    def uses_workers(self) -> bool:
        """True if the workers of a parameter server compute the steps."""
        return self.worker_step is not None

    @property
    def is_compilable(self) -> bool:
        """True if XLA can compile the step. It would put the layers of all devices on one."""
        replicas = (self.replicas, self.devices)
        return self.place_layers is None and all(
            replica_set is None or replica_set.is_compilable for replica_set in replicas
        )


ONE_DEVICE = Parallelism()
"""The parallelism of a step that one device of one process computes alone."""

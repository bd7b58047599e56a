"""Finds the replicas of a training step that run in other processes."""

import keras

from keras_deepseek.backend.keras_private.trainers import overrides_train_step
from keras_deepseek.backend.processes.processes import Processes, RemoteReplicas
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training.cluster.placement import Placement


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

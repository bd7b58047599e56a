"""The training step of a worker: gradients in place of an update, and the seeds of each batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import seed_states
from keras_deepseek.backend.tensor_values import multiply_gradients, read_values
from keras_deepseek.training.step.gradient_clip import GradientClip, clip_gradients
from keras_deepseek.training.step.precision import step_in_precision
from keras_deepseek.training.step.training_step import TrainingStep

GRADIENTS = "keras_deepseek gradients"
"""The log that holds the gradients. No log that is shown has a space in its name."""


def take_gradient_step(
    trainer: Any, arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """Changes a trainer's step so that it returns gradients and updates only other state.

    The trainer makes no other steps, or is a shallow copy of one that does. The arguments are its
    `StepOptions` as `options`, its `policy`, and the `global_clipnorm` of its optimizer. Returns
    the step in the trainer's precision, and a function to call before the first one.
    """
    model, options, policy = trainer.model, arguments["options"], arguments["policy"]
    update = GradientsAsLogs(model, options.gradient_clip, arguments["global_clipnorm"])
    gradient_step = TrainingStep(model, trainer.train_step, update, options)
    vars(trainer)["_batch_loss"] = gradient_step.loss  # `Trainer.train_step` returns it.
    run = backend.current().step.make_train_step(model, gradient_step)
    prepare: Callable[[], Any] = gradient_step.prepare
    if policy is not None:
        run = step_in_precision(model, policy, run, options.float32_layers)
        prepare = step_in_precision(model, policy, prepare, options.float32_layers)
    return run, prepare


class GradientsAsLogs:
    """An update that only returns the clipped gradients of a step among its logs.

    Clipping by the global norm is done here, since no server has all gradients. `global_clipnorm`
    is the optimizer's.
    """

    def __init__(
        self, model: keras.Model, gradient_clip: GradientClip | None, global_clipnorm: float | None
    ) -> None:
        self._model = model
        self._is_logged = gradient_clip is not None
        self._clip = gradient_clip
        if gradient_clip is None and global_clipnorm is not None:
            self._clip = ("global_norm", global_clipnorm)

    def __call__(
        self,
        loss: Any,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        finish_update: Callable[[], None] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Returns `None` for the unchecked step, and the gradients by trainable variable."""
        logs: dict[str, Any] = {}
        if self._clip is not None:
            norm = backend.current().step.global_norm(gradients)
            if self._is_logged:
                logs["gradient_norm"] = norm
            clipped, factor = clip_gradients(self._clip, gradients, variables, norm)
            gradients = list(multiply_gradients(clipped, factor))
        gradient_by_id = {
            id(variable): grad for variable, grad in zip(variables, gradients, strict=True)
        }
        logs[GRADIENTS] = [
            gradient_by_id.get(id(variable)) for variable in self._model.trainable_variables
        ]
        return None, logs


_STRIDE = 15_485_863
"""The distance between the seeds of two batches: more than one batch draws, and prime to 2**31."""


class BatchSeeds:
    """Computes the seeds of each batch from the states of a model's seed generators."""

    def __init__(self, model: keras.Model) -> None:
        self.variables: list[Any] = seed_states(model)
        self._first = read_values(self.variables)

    def of(self, number: int) -> list[Array]:
        """Returns the states that the seed generators have for a batch."""
        moved = [np.array(state) for state in self._first]
        for state in moved:
            state[0] = (int(state[0]) + number * _STRIDE) % 2**31
        return moved

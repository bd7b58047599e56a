"""The step of a worker: that of `TrainingStep` up to the update, which the servers make."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.gradient_scale import multiply_gradients
from keras_deepseek.training.step.gradient_clip import GradientClip, clip_gradients
from keras_deepseek.training.step.gradient_update import GradientUpdate
from keras_deepseek.training.step.precision import step_in_precision
from keras_deepseek.training.step.rematerialization import Remat
from keras_deepseek.training.step.training_step import TrainingStep

GRADIENTS = "keras_deepseek gradients"
"""Under which of the logs the gradients are returned; no log that is shown has a space in it."""


class GradientStep(TrainingStep):
    """A step that returns its gradients among its logs and updates nothing but metrics and layers.

    Args:
        model: `keras.Model`, compiled with an optimizer that does nothing.
        compute: The trainer's `train_step`.
        micro_batches: integer, as for `TrainingStep`.
        gradient_clip: tuple, or `None`, as for `TrainingStep`.
        global_clipnorm: float. That of the optimizer, or `None`.
        remat: boolean or names of layers, as for `TrainingStep`.
    """

    def __init__(
        self,
        model: keras.Model,
        compute: Callable[..., Any],
        *,
        micro_batches: int,
        gradient_clip: GradientClip | None,
        global_clipnorm: float | None,
        remat: Remat,
    ) -> None:
        super().__init__(
            model,
            compute,
            micro_batches=micro_batches,
            gradient_clip=gradient_clip,
            guard=None,
            remat=remat,
        )
        self._update = _NoUpdate(model, gradient_clip, global_clipnorm)


def take_gradient_step(
    trainer: Any, arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """Makes a trainer's step return gradients; returns it in its precision, and what prepares it.

    Args:
        trainer: `Trainer` that makes no other steps, or a shallow copy of one.
        arguments: dict. Those of `GradientStep` for it, its `policy` and `float32_layers`.
    """
    settings = dict(arguments)
    policy, float32_layers = settings.pop("policy"), settings.pop("float32_layers")
    model = trainer.model
    gradient_step = GradientStep(model, trainer.train_step, **settings)
    vars(trainer)["_plan"] = gradient_step  # Of which `Trainer.train_step` asks the loss.
    run = backend.current().make_train_step(model, gradient_step)
    prepare: Callable[[], Any] = gradient_step.prepare
    if policy is not None:
        run = step_in_precision(model, policy, run, float32_layers)
        prepare = step_in_precision(model, policy, prepare, float32_layers)
    return run, prepare


class _NoUpdate(GradientUpdate):
    """Stands where the update is made, and returns what would be applied.

    A clip by the norm of all gradients is made here: no server has all of them.

    Args:
        model: `keras.Model`.
        gradient_clip: tuple, or `None`.
        global_clipnorm: float, or `None`.
    """

    def __init__(
        self, model: keras.Model, gradient_clip: GradientClip | None, global_clipnorm: float | None
    ) -> None:
        super().__init__(model, gradient_clip, None, None)
        self._clip = gradient_clip
        if gradient_clip is None and global_clipnorm is not None:
            self._clip = ("global_norm", global_clipnorm)

    def __call__(
        self,
        loss: Any,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        keep: Callable[[], None] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Returns `None`, as nothing is checked, and the gradients by all trainable variables."""
        logs: dict[str, Any] = {}
        if self._clip is not None:
            norm = backend.current().global_norm(gradients)
            if self._gradient_clip is not None:
                logs["gradient_norm"] = norm
            clipped, factor = clip_gradients(self._clip, gradients, variables, norm)
            gradients = list(multiply_gradients(clipped, factor))
        found = {id(each): grad for each, grad in zip(variables, gradients, strict=True)}
        trained = self._model.trainable_variables
        logs[GRADIENTS] = [found.get(id(each)) for each in trained]
        return None, logs

"""The update of weights from gradients, in the same order of operations on every backend."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.training.step.gradient_clip import clip_gradients
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.guard_metric import GuardMetric
from keras_deepseek.training.step.step_options import StepOptions


class GradientUpdate:
    """Unscales, checks, clips and applies the gradients of a step.

    Args:
        model: `keras.Model`, compiled.
        options: `StepOptions`.
        guard: `GuardMetric` that judges steps, or `None`.
        residual: `GradientResidual` if gradients are compressed between processes, or `None`.
    """

    def __init__(
        self,
        model: keras.Model,
        options: StepOptions,
        guard: GuardMetric | None,
        residual: GradientResidual | None,
    ) -> None:
        self._model = model
        self._gradient_clip = options.gradient_clip
        self._guard = guard
        self._residual = residual

    def __call__(
        self,
        loss: Any,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        keep_residual: Callable[[], None] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Unscales, checks, clips and applies the gradients, and then calls `keep_residual`.

        Returns:
            Boolean scalar, true for a good step, or `None` if steps are not checked; and the logs.
        """
        optimizer, logs, densify = self._model.optimizer, {}, backend.current().step.densify
        scaling = optimizer if is_scaled(optimizer) else None
        inner = optimizer if scaling is None else optimizer.inner_optimizer
        if scaling is not None:
            scale = scaling.dynamic_scale
            gradients = [_unscale(gradient, scale) for gradient in map(densify, gradients)]
        is_checked = scaling is not None or self._guard is not None
        if is_checked or self._gradient_clip is not None:
            gradients = [densify(gradient) for gradient in gradients]
            norm = backend.current().step.global_norm(gradients) if gradients else ops.zeros(())

        def apply() -> None:
            clipped, factor = gradients, None
            if self._gradient_clip is not None:
                clipped, factor = clip_gradients(self._gradient_clip, gradients, variables, norm)
            backend.current().step.apply_update(inner, clipped, variables, factor)
            if keep_residual is not None:
                keep_residual()

        if self._gradient_clip is not None:
            logs["gradient_norm"] = norm
        if not is_checked:
            apply()
            return None, logs
        # The norm is finite only if all gradients are.
        is_good = is_finite = ops.isfinite(norm)
        if self._guard is not None:
            # Loss scaling handles overflows of float16: they are not bad steps.
            is_good = self._guard.judge(loss, is_finite if scaling is None else True)
            logs |= self._guard.logs()
        residuals = self._residual.variables if self._residual else []
        backend.current().compute.run_if(
            ops.logical_and(is_good, is_finite),
            apply,
            [*variables, *inner.variables, *residuals],
        )
        if scaling is not None:
            # A bad loss is no reason to change the loss scale.
            _adapt_scale(scaling, is_finite, True if self._guard is None else is_good)
        return is_good, logs


def is_scaled(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns True if an optimizer scales the loss."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _unscale(gradient: Any, scale: keras.Variable) -> Any:
    with backend.current().devices.on_device_of(gradient):
        return ops.divide(gradient, scale)


def _adapt_scale(optimizer: Any, is_finite: Any, counts: Any) -> None:
    """Doubles the loss scale after many finite steps, and halves it after one that is not finite.

    Keras does the same, with different code on each backend.

    Args:
        optimizer: `LossScaleOptimizer`.
        is_finite: Boolean scalar. The gradients are finite.
        counts: Boolean scalar. False leaves the scale unchanged.
    """
    count, scale = optimizer.step_counter, optimizer.dynamic_scale
    is_full = ops.equal(count, optimizer.dynamic_growth_steps - 1)
    grown = ops.where(is_full, scale * 2.0, ops.convert_to_tensor(scale))
    next_scale = ops.where(is_finite, grown, scale * 0.5)
    next_count = ops.where(ops.logical_or(is_full, ops.logical_not(is_finite)), 0, count + 1)
    scale.assign(ops.where(counts, next_scale, ops.convert_to_tensor(scale)))
    count.assign(ops.where(counts, next_count, ops.convert_to_tensor(count)))

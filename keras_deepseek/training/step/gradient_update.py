"""Unscales, checks, clips and applies gradients, in this order, and measures statistics."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.optimizers import (
    clipping_by,
    count_update,
    current_learning_rate,
    plain_optimizer,
)
from keras_deepseek.backend.profiling.step_trace import OPTIMIZER
from keras_deepseek.backend.tensor_values import multiply_gradients
from keras_deepseek.callbacks.step_metrics import STEP_METRICS, Labels, StepMetrics
from keras_deepseek.layers.moe.expert_router import ExpertRouter
from keras_deepseek.training.step.gradient_clip import GradientClip, clip_gradients
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts
from keras_deepseek.training.step.step_guard import GuardMetric
from keras_deepseek.training.step.step_options import StepOptions


class LayerStatistics:
    """Computes the metrics of a step for the run record, within the step.

    Args:
        is_by_layer: boolean. Measures layers and experts, and not only the loss and the rate.
    """

    def __init__(self, model: keras.Model, step_metrics: StepMetrics, *, is_by_layer: bool) -> None:
        self._model = model
        self.step_metrics = step_metrics
        self._is_by_layer = is_by_layer
        self._routers: list[ExpertRouter] | None = None
        self._labelled: list[int] | None = None  # The ids of the variables that have labels.
        self._rate: Any = None
        self._variables: list[keras.Variable] = []
        self._change = backend.current().step.make_weight_change()
        self._norms: list[Any] = []

    def measure_layers(self, parts: OptimizerParts | None) -> bool:
        """Returns True if the norms of gradients and updates are measured.

        With `parts` all processes measure theirs, although only rank 0 may have a recorder.
        """
        return self._is_by_layer and (self.step_metrics.are_wanted or parts is not None)

    def begin(self, inputs: Any) -> None:
        """Notes the shapes of the inputs, and reads the learning rate, before the update."""
        if self.step_metrics.inputs is None:
            self.step_metrics.inputs = keras.tree.map_structure(
                lambda tensor: keras.KerasTensor(tensor.shape, tensor.dtype), inputs
            )
        self._rate = current_learning_rate(self._model.optimizer)

    def watch_update(
        self,
        gradients: Sequence[Any],
        variables: Sequence[keras.Variable],
        parts: OptimizerParts | None,
    ) -> Any:
        """Measures gradients and weights before the update; returns the gradients' global norm.

        With `parts`, the gradients and their norm are those of this process's parts.
        """
        norms, global_norm = _norms(gradients)
        if parts is not None:
            norms, variables = parts.sum_norms(norms, variables), parts.weights
        if self.step_metrics.are_wanted:
            self._variables = list(variables)
            self._norms = [norms, self._change.begin(variables)]
        return global_norm

    def finish(self, loss: Any) -> dict[str, Any]:
        """Returns the metrics as a log of the step."""
        numbers = [ops.reshape(ops.cast(scalar, "float32"), (1,)) for scalar in (loss, self._rate)]
        if self._norms:
            self._norms.append(self._change.end(self._variables))
        if self._is_by_layer and self._routers is None:
            layers = flatten_layers(self._model)
            self._routers = [layer for layer in layers if isinstance(layer, ExpertRouter)]
        routers = self._routers or []
        loads = [ops.cast(router.expert_load, "float32") for router in routers]
        if self._labelled != (labelled := [id(variable) for variable in self._variables]):
            self._labelled = labelled
            self.step_metrics.labels = Labels(
                _layers_of(self._variables),
                [
                    f"{router.path}/{i}"
                    for router in routers
                    for i in range(router.expert_load.shape[0])
                ],
                _layers_of(self._model.trainable_variables),
            )
        step_metrics = backend.current().step.concatenate([*numbers, *self._norms, *loads])
        # Tensors of a trace must not outlive it.
        self._rate, self._variables, self._norms = None, [], []
        return {STEP_METRICS: ops.stop_gradient(step_metrics)}


class GradientUpdate:
    """Unscales, checks, clips and applies the gradients of a step."""

    def __init__(
        self,
        model: keras.Model,
        options: StepOptions,
        guard: GuardMetric | None,
        residual: GradientResidual | None,
        statistics: LayerStatistics | None = None,
        parts: OptimizerParts | None = None,
    ) -> None:
        self._statistics = statistics
        self._model = model
        self._gradient_clip = options.gradient_clip
        self._guard = guard
        self._residual = residual
        self._parts = parts

    def __call__(
        self,
        loss: Any,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        finish_update: Callable[[], None] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Unscales, checks, clips and applies the gradients, and then calls `finish_update`.

        Returns:
            Boolean scalar, true for a good step, or `None` if steps are not checked; and the logs.
        """
        with backend.current().step.mark(OPTIMIZER):
            return self._update(loss, gradients, variables, finish_update)

    def _update(
        self,
        loss: Any,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        finish_update: Callable[[], None] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Updates as `__call__` does. Only checks, statistics and clipping need the norm."""
        optimizer = self._model.optimizer
        is_checked = is_scaled(optimizer) or self._guard is not None
        watch = self._statistics is not None and self._statistics.measure_layers(self._parts)
        needs_norm = is_checked or watch or self._gradient_clip is not None
        if not needs_norm:
            self._apply(gradients, variables, None, finish_update)
            return None, {}
        gradients = self._unscale(gradients)
        if self._statistics is not None and watch:
            norm = self._statistics.watch_update(gradients, variables, self._parts)
        else:
            norm = _norms(gradients)[1]
        if self._parts is not None:  # Other processes have the other parts of the gradients.
            norm = ops.sqrt(self._parts.replicas.add_up(ops.square(norm)))
        logs = {} if self._gradient_clip is None else {"gradient_norm": norm}
        if not is_checked:
            self._apply(gradients, variables, norm, finish_update)
            return None, logs
        is_finite = ops.isfinite(norm)  # The norm is finite only if all gradients are.
        is_good = is_finite
        if self._guard is not None:
            # Loss scaling handles overflows of float16: they are not bad steps.
            is_good = self._guard.judge(loss, True if is_scaled(optimizer) else is_finite)
            logs |= self._guard.logs()
        backend.current().compute.run_if(
            ops.logical_and(is_good, is_finite),
            functools.partial(self._apply, gradients, variables, norm, finish_update),
            self._assigned(variables),
        )
        if is_scaled(optimizer):
            # A bad loss is no reason to change the loss scale.
            _adapt_scale(optimizer, is_finite, True if self._guard is None else is_good)
        return is_good, logs

    def _unscale(self, gradients: Sequence[Any]) -> list[Any]:
        dense = [backend.current().step.densify(gradient) for gradient in gradients]
        if not is_scaled(self._model.optimizer):
            return dense
        scale = self._model.optimizer.dynamic_scale
        return [_divide(gradient, scale) for gradient in dense]

    def _apply(
        self,
        gradients: Sequence[Any],
        variables: Sequence[keras.Variable],
        norm: Any,
        finish_update: Callable[[], None] | None,
    ) -> None:
        """Clips the gradients, updates the variables, and then calls `finish_update`."""
        optimizer, clip = plain_optimizer(self._model.optimizer), self._gradient_clip
        apply = functools.partial(backend.current().step.apply_update, optimizer)
        if self._parts is not None:
            self._parts.take()
        if not variables:  # All parts are those of other processes.
            count_update(optimizer)
        elif clip is None:
            apply(gradients, variables)
        elif optimizer.gradient_accumulation_steps:  # Keras clips when it has all gradients.
            clipped = [variable for variable in variables if not variable.overwrite_with_gradient]
            with clipping_by(optimizer, functools.partial(_clip_accumulated, clip, clipped)):
                apply(gradients, variables)
        else:
            gradients, factor = clip_gradients(clip, gradients, variables, norm)
            apply(gradients, variables, factor)
        if finish_update is not None:
            finish_update()

    def _assigned(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        residuals = self._residual.variables if self._residual else []
        whole = self._model.trainable_variables if self._parts else []
        return [*variables, *plain_optimizer(self._model.optimizer).variables, *residuals, *whole]


def is_scaled(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns True if an optimizer scales the loss."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _clip_accumulated(
    clip: GradientClip, variables: Sequence[keras.Variable], gradients: Sequence[Any]
) -> list[Any]:
    norm = backend.current().step.global_norm(gradients)
    return multiply_gradients(*clip_gradients(clip, gradients, variables, norm))


def _norms(gradients: Sequence[Any]) -> tuple[Any, Any]:
    """Returns `Step.norms`, of no gradients too: all parts may be those of other processes."""
    if not gradients:
        return ops.zeros((0,)), ops.zeros(())
    return backend.current().step.norms(gradients)


def _divide(gradient: Any, scale: keras.Variable) -> Any:
    with backend.current().devices.on_device_of(gradient):
        return ops.divide(gradient, scale)


def _adapt_scale(optimizer: Any, is_finite: Any, counts: Any) -> None:
    """Doubles the loss scale after many finite steps, and halves it after one that is not finite.

    Keras does the same, with different code on each backend.

    `counts` is a boolean scalar: false leaves the scale unchanged.
    """
    count, scale = optimizer.step_counter, optimizer.dynamic_scale
    is_full = ops.equal(count, optimizer.dynamic_growth_steps - 1)
    grown = ops.where(is_full, scale * 2.0, ops.convert_to_tensor(scale))
    next_scale = ops.where(is_finite, grown, scale * 0.5)
    next_count = ops.where(ops.logical_or(is_full, ops.logical_not(is_finite)), 0, count + 1)
    scale.assign(ops.where(counts, next_scale, ops.convert_to_tensor(scale)))
    count.assign(ops.where(counts, next_count, ops.convert_to_tensor(count)))


def _layers_of(variables: Sequence[keras.Variable]) -> list[str]:
    return [variable.path.rpartition("/")[0] for variable in variables]

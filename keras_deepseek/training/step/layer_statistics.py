"""Statistics of the layers in one step: norms of gradients, updates and weights; expert loads."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.optimizers import current_learning_rate
from keras_deepseek.callbacks.step_metrics import STEP_METRICS, Labels, StepMetrics
from keras_deepseek.layers.moe.expert_router import ExpertRouter


class LayerStatistics:
    """Computes the metrics of a step for the run record, within the step.

    Args:
        is_by_layer: boolean. Measures layers and experts, and not only the loss and the rate.
    """

    def __init__(self, model: keras.Model, step_metrics: StepMetrics, *, is_by_layer: bool) -> None:
        self._model = model
        self._step_metrics = step_metrics
        self._is_by_layer = is_by_layer
        self._routers: list[ExpertRouter] | None = None
        self._labelled: list[int] | None = None  # The ids of the variables that have labels.
        self._rate: Any = None
        self._variables: list[keras.Variable] = []
        self._change = backend.current().step.make_weight_change()
        self._norms: list[Any] = []

    @property
    def are_wanted(self) -> bool:
        """True if a recorder waits for the metrics."""
        return self._step_metrics.are_wanted

    @property
    def measure_layers(self) -> bool:
        """True if the norms of gradients and updates are measured."""
        return self._is_by_layer and self.are_wanted

    def begin(self, inputs: Any) -> None:
        """Notes the shapes of the inputs, and reads the learning rate, before the update."""
        if self._step_metrics.inputs is None:
            self._step_metrics.inputs = keras.tree.map_structure(
                lambda tensor: keras.KerasTensor(tensor.shape, tensor.dtype), inputs
            )
        optimizer = self._model.optimizer
        self._rate = current_learning_rate(getattr(optimizer, "inner_optimizer", optimizer))

    def watch_update(self, gradients: Sequence[Any], variables: Sequence[keras.Variable]) -> Any:
        """Measures gradients and weights before the update; returns the gradients' global norm."""
        self._variables = list(variables)
        norms, global_norm = backend.current().step.norms(gradients)
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
            self._step_metrics.labels = Labels(
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


def _layers_of(variables: Sequence[keras.Variable]) -> list[str]:
    return [variable.path.rpartition("/")[0] for variable in variables]

"""The function that a TensorFlow worker runs for a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.tensor_values import read_values
from keras_deepseek.training.parameter_server.gradient_step import GRADIENTS, BatchSeeds
from keras_deepseek.training.parameter_server.model_shards import kept_states
from keras_deepseek.training.parameter_server.remote_model import RemoteModel


class CoordinatorStep:
    """A step that computes a batch's gradients, and writes them into a slot of the servers.

    TensorFlow traces the step on the chief's model, with values from the servers in place of the
    model's own. No variable of the chief's model is read or changed. `further_variables` are
    variables that the step reads and that do not belong to the model.
    """

    def __init__(
        self,
        model: keras.Model,
        step: Callable[[Any], dict[str, Any]],
        further_variables: Sequence[keras.Variable] = (),
    ) -> None:
        self._model = model
        self._step = step
        self._states = kept_states(model)
        self.seeds = BatchSeeds(model)
        self._metrics = list(model.metrics_variables)
        self._first_metrics = _first_values(model)
        sent = [*model.trainable_variables, *self._states, *self.seeds.variables, *self._metrics]
        sent_ids = {id(variable) for variable in sent}
        # By id, because the same variable may come twice.
        variable_by_id = {
            id(variable): variable for variable in (*model.variables, *further_variables)
        }
        self._frozen = [
            variable for number, variable in variable_by_id.items() if number not in sent_ids
        ]
        self.remote: RemoteModel | None = None

    def read_frozen(self) -> list[Array]:
        """Returns the values of the variables that no update changes."""
        return read_values(self._frozen)

    def __call__(
        self, batch: Any, seeds: Sequence[Any], slot: Any
    ) -> tuple[dict[str, Any], list[Any]]:
        """Computes a batch; returns its logs, and its changes to the metrics' variables.

        The gradients go to `slot`, an int32 scalar. `seeds` are the states of seed generators for
        this batch.
        """
        if self.remote is None:
            raise RuntimeError("There are no servers.")
        weights, states, frozen = self.remote.pull()
        first_metrics = [
            keras.ops.convert_to_tensor(value, dtype=variable.dtype)
            for variable, value in zip(self._metrics, self._first_metrics, strict=True)
        ]
        # The value in this step of each variable that the model reads.
        mapping = [
            *zip(self._model.trainable_variables, weights, strict=True),
            *zip(self._states, states, strict=True),
            *zip(self._frozen, frozen, strict=True),
            *zip(self.seeds.variables, seeds, strict=True),
            *zip(self._metrics, first_metrics, strict=True),
        ]
        with (
            _unscaled(self._model.optimizer),
            keras.StatelessScope(mapping, collect_losses=True) as scope,
        ):
            logs = dict(self._step(batch))
            metric_names = set(self._model.get_metrics_result())
        gradients = logs.pop(GRADIENTS)
        changes = [
            scope.get_current_value(state) - old_value
            for state, old_value in zip(self._states, states, strict=True)
        ]
        self.remote.push(slot, gradients, changes)
        metrics = [
            scope.get_current_value(variable) - first
            for variable, first in zip(self._metrics, self._first_metrics, strict=True)
        ]
        own_logs = {name: value for name, value in logs.items() if name not in metric_names}
        return own_logs, metrics


def _first_values(model: keras.Model) -> list[Array]:
    """Returns the values of the metrics' variables after `reset_metrics`."""
    variables = list(model.metrics_variables)
    now = read_values(variables)
    model.reset_metrics()
    first = read_values(variables)
    for variable, value in zip(variables, now, strict=True):
        variable.assign(value)
    return first


@contextmanager
def _unscaled(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Context manager that disables the loss scale, since servers don't divide by it."""
    scale = optimizer.loss_scale_factor
    optimizer.loss_scale_factor = None
    try:
        yield
    finally:
        optimizer.loss_scale_factor = scale

"""The compiled loss of a batch, or of a part of a batch, and the error for a missing one."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.call_context import collect_loss_means
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.loss_and_metrics import (
    compute_training_loss,
    copy_weights,
    count_rows_in_losses,
    update_metrics,
)
from keras_deepseek.backend.keras_private.trainers import call_for_training
from keras_deepseek.backend.profiling.step_trace import LOSS
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.loss.compiled_losses import compute_loss_weight, find_reduction

Batch = tuple[Any, Any, Any]
"""The inputs, the targets and the sample weights, each a structure of tensors or `None`."""


def count_rows(batch: Batch) -> Any:
    """Returns the number of rows of a batch, as an integer or a scalar tensor."""
    inputs = [array for array in keras.tree.flatten(batch[0]) if array is not None]
    if not inputs:
        raise InvalidInputError("Received a batch without inputs, which can't be trained on.")
    return ops.shape(inputs[0])[0]


class BatchLoss:
    """Computes the compiled loss of a batch, and updates the compiled metrics.

    Args:
        is_in_parts: True if each batch is computed in parts: micro-batches, or rows of replicas.
    """

    def __init__(self, model: keras.Model, *, is_in_parts: bool) -> None:
        self._model = model
        self.is_in_parts = is_in_parts
        self.is_sum = is_in_parts and find_reduction(model.loss) == "sum"
        self._num_rows: Any = None
        self._logs: dict[str, Any] = {}

    @contextmanager
    def of_batch(self, num_rows: Any) -> Iterator[None]:
        """Context manager that sets the number of rows of the whole batch."""
        outer_rows, self._num_rows = self._num_rows, num_rows
        try:
            yield
        finally:
            self._num_rows = outer_rows  # The tensor belongs to the graph of this step only.

    def of_part(self, num_rows: Any) -> AbstractContextManager[None]:
        """Returns a context manager that counts the rows of a part in the losses by output."""
        factor = 1.0 / self._share(num_rows) if self.is_sum else 1.0  # Their mean is logged.
        return count_rows_in_losses(self._model, num_rows, factor)

    def __call__(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """Computes the loss; for a part of a batch, returns a dict with the loss and its weight."""
        model = self._model
        with collect_loss_means() if self.is_in_parts else nullcontext([]) as means:
            y_pred = call_for_training(model, x)
        # Copied: on PyTorch, Keras divides them in place by the mean of the part's own mask.
        weights = copy_weights(sample_weight) if self.is_in_parts else sample_weight
        with backend.current().step.mark(LOSS):
            loss = compute_training_loss(model, x, y, y_pred, weights)
            is_keras_default = type(model).compute_loss is keras.Model.compute_loss
            if is_keras_default and model.loss is None and not model.losses:  # JAX would return 0.
                raise missing_loss_error(model)
            self._logs = update_metrics(model, x, y, y_pred, sample_weight)
        if not self.is_in_parts:
            return loss
        _check_added_losses(model)
        if self.is_sum:
            return {"loss": self._scale_added_losses(loss, count_rows((x, y, sample_weight)))}
        if means and model.loss is None:
            return {"loss": loss, "weight": sum(map(ops.convert_to_tensor, means))}
        return {"loss": loss, "weight": compute_loss_weight(model.loss, y, y_pred, sample_weight)}

    def take_logs(self) -> dict[str, Any]:
        """Returns the logs that a model's own `compute_metrics` adds to its metrics."""
        logs, self._logs = self._logs, {}  # The tensors belong to the graph of this step only.
        return logs

    def _scale_added_losses(self, loss: Any, num_rows: Any) -> Any:
        """Multiplies the losses that layers add by this part's share of the rows.

        The losses of the parts are summed. An added loss is a mean, or does not depend on the data,
        so that it would count once for each part.
        """
        added = self._model.losses
        if not added or type(self._model).compute_loss is not keras.Model.compute_loss:
            return loss  # An overridden `compute_loss` may not include them.
        other_share = 1.0 - self._share(num_rows)
        return loss - other_share * sum(
            ops.convert_to_tensor(added_loss, "float32") for added_loss in added
        )

    def _share(self, num_rows: Any) -> Any:
        """Returns the share of a part of `num_rows` rows in the whole batch."""
        return ops.cast(num_rows, "float32") / ops.cast(self._num_rows, "float32")


def _check_added_losses(model: keras.Model) -> None:
    """Raises an error if a layer adds one loss for each row: Keras sums them, parts average."""
    if any(len(ops.shape(added_loss)) for added_loss in model.losses):
        raise InvalidInputError(
            f"A layer of {model.name!r} adds a loss with one number for each row. Keras sums these "
            "numbers, while a batch in parts (micro_batches, devices, processes) would average "
            "them. Let the layer add their mean: self.add_loss(ops.mean(losses))."
        )


def missing_loss_error(model: keras.Model) -> InvalidInputError:
    """Returns the error for training a model without a loss."""
    return InvalidInputError(
        f"Model {model.name!r} has no loss: pass Trainer(..., loss=...), as in "
        "loss='sparse_categorical_crossentropy'."
    )


def check_test_loss(model: keras.Model) -> None:
    """Raises an error if a validation or evaluation would have no loss; JAX would return 0.

    Nothing is raised if the model has custom layers or regularizers, which may add a loss.
    """
    is_own = (
        type(model).compute_loss is not keras.Model.compute_loss
        or type(model).test_step is not keras.Model.test_step
    )
    if model.loss is not None or is_own or not model.built or model.losses:
        return
    for layer in flatten_layers(model):
        is_keras_layer = type(layer).__module__.split(".")[0] == "keras"
        if not is_keras_layer or getattr(layer, "activity_regularizer", None) is not None:
            return
    raise InvalidInputError(
        f"Model {model.name!r} has no loss. Validation and evaluation need one, also if an "
        "override of `train_step` computes its own: pass Trainer(..., loss=...), or use no "
        "validation and call predict in a callback."
    )

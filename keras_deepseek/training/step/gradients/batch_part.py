"""The loss and the gradients of a batch, or of a part of one: one forward and one backward pass.

`micro_batches` and `replicas` sum such parts. Each of their functions takes a batch, as `BatchPart`
does, and returns a `Part` too, so that they can be nested.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.loss_and_metrics import copy_weights, watch_metric_updates
from keras_deepseek.backend.keras_private.optimizers import weight_slots
from keras_deepseek.backend.processes.processes import Receive
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradients.weighted_sums import (
    MIN_WEIGHT,
    WeightedSums,
    divide,
    make_zero_if_empty,
)
from keras_deepseek.training.step.loss.batch_loss import Batch, BatchLoss, count_rows
from keras_deepseek.training.step.loss.compiled_losses import label_checks


@dataclass(frozen=True)
class Part:
    """A batch or a part of one after its forward pass, with its backward pass.

    Args:
        sums: `WeightedSums`, without gradients. With the weight `None` they are the means of the
            whole batch.
        num_rows: The number of rows: integer or scalar tensor.
        backward: Function of a divisor and a `Receive`, both optional. It returns the gradients of
            the sums by variable, over the divisor; `None` where the loss does not depend on it.
            Without a divisor, the caller has to multiply them by `factor`.
        factor: Scalar. Defaults to `1.0`.
        keep_residual: Function that keeps the rest that gradient compression left out, for a step
            whose update is made. Defaults to `None`: nothing was compressed.
    """

    sums: WeightedSums
    num_rows: Any
    backward: Callable[..., list[Any]]
    factor: Any = 1.0
    keep_residual: Callable[[], None] | None = None

    def means(self, *, is_sum: bool) -> tuple[Any, dict[str, Any], list[Any]]:
        """Returns the mean loss, logs and gradients of the whole batch.

        Args:
            is_sum: boolean. The loss is a sum over rows: then nothing is divided.
        """
        sums = self.sums
        if sums.weight is None:
            return sums.loss, sums.logs, self.backward()
        divisor = 1.0 if is_sum else ops.maximum(sums.weight, MIN_WEIGHT)
        logs = {name: log / divisor for name, log in sums.logs.items()}
        return sums.loss / divisor, logs, self.backward(divisor)


PartFunction: TypeAlias = Callable[[Batch, Sequence[keras.Variable]], Part]
"""Function of a batch, or of a part of one, and of the variables that its gradients are for."""


def make_summed_part(sums: WeightedSums, num_rows: Any) -> Part:
    """Returns a `Part` whose gradients are computed already."""

    def backward(divisor: Any = None, _: Receive | None = None) -> list[Any]:
        if divisor is None:
            return sums.gradients
        return [
            None if gradient is None else divide(gradient, divisor) for gradient in sums.gradients
        ]

    return Part(sums, num_rows, backward)


class BatchPart:
    """Computes the gradients of a batch, or of a part of one, by one forward and backward pass.

    Args:
        compute: `Trainer.train_step`: function of `x`, `y` and `sample_weight` that returns the
            loss, or a dict of the loss and further logs.
    """

    def __init__(self, model: keras.Model, compute: Callable[..., Any], loss: BatchLoss) -> None:
        self._model = model
        self._compute = compute
        self._loss = loss
        self.updates_metrics = True
        """True if the compiled metrics were updated when the computation was last traced."""

    def __call__(self, batch: Batch, variables: Sequence[keras.Variable]) -> Part:
        """Runs the forward pass of a batch.

        The `Part` has its sums. Its `backward` computes the gradients by `variables`.
        """
        step = backend.current().step
        (loss, weight, logs), differentiate = step.differentiate(
            self._bind(batch), variables, self.assigned()
        )
        num_rows = count_rows(batch)
        if weight is None:
            return Part(WeightedSums(None, loss, logs, []), num_rows, differentiate)
        zero_if_weightless = make_zero_if_empty(weight)

        def prepare(gradient: Any) -> Any:  # A mean over nothing may be NaN.
            return zero_if_weightless(ops.cast(step.densify(gradient), "float32"))

        def backward(divisor: Any = None, receive: Receive | None = None) -> list[Any]:
            # Divides here: sums are far larger than means, and would overflow in half precision.
            factor = weight / (ops.maximum(weight, MIN_WEIGHT) if divisor is None else divisor)
            send = receive and (lambda index, gradient: receive(index, prepare(gradient)))
            return [
                None if gradient is None else prepare(gradient)
                for gradient in differentiate(factor, send)
            ]

        return Part(WeightedSums.of(loss, weight, logs), num_rows, backward, factor=weight)

    def count_kept_bytes(self, batch: Batch, variables: Sequence[keras.Variable]) -> int:
        """Returns the bytes that the forward pass keeps for the backward pass."""
        return backend.current().step.count_kept_bytes(
            self._bind(batch), variables, self.assigned(), batch
        )

    def assigned(self) -> list[keras.Variable]:
        """Returns all variables that the forward pass may assign to."""
        model = self._model
        slot_ids = {id(slot) for slot, _ in weight_slots(model.optimizer)}
        return [
            *model.non_trainable_variables,
            *(variable for variable in model.optimizer.variables if id(variable) not in slot_ids),
            *model.metrics_variables,
        ]

    def _bind(self, batch: Batch) -> Callable[[], tuple[Any, Any]]:
        """Returns a function that computes a batch's scaled loss, and `(loss, weight, logs)`."""

        def compute() -> tuple[Any, Any]:
            x, y, sample_weight = batch
            with (
                watch_metric_updates(self._model) as updates,
                label_checks(self._model),
                self._loss.of_part(count_rows(batch)),
            ):
                result = self._compute(x, y, copy_weights(sample_weight))
            loss, weight, logs = read_result(result)
            logs = {**self._loss.take_logs(), **logs}
            self.updates_metrics = bool(updates)
            if self._loss.is_in_parts:
                weight = 1.0 if weight is None or self._loss.is_sum else weight
                weight = ops.cast(weight, "float32")
            else:
                weight = None
            scaled = self._model.optimizer.scale_loss(loss)
            return scaled, (ops.stop_gradient(loss), weight, logs)

        return compute


def read_result(result: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the loss, its weight or `None`, and further logs from the result of a step."""
    if result is None:
        raise InvalidInputError("`train_step` must return the loss; it returned nothing.")
    if not isinstance(result, dict):
        return _check_loss(result), None, {}
    if "loss" not in result:
        raise InvalidInputError(
            "`train_step` must return the loss, or a dict with 'loss'; received a dict with "
            f"{', '.join(map(repr, result)) or 'nothing'}."
        )
    further_results = {name: value for name, value in result.items() if name != "loss"}
    weight = further_results.get("weight")
    for name, value in further_results.items():
        if isinstance(value, str):
            raise InvalidInputError(f"`train_step` must return scalars; {name!r} is {value!r}.")
        shape = () if value is None else tuple(ops.convert_to_tensor(value).shape)
        if shape:
            raise InvalidInputError(
                f"`train_step` must return scalars; {name!r} has the shape {shape}. Return its "
                "mean, or several scalars with different names."
            )
    logs = {name: value for name, value in further_results.items() if name != "weight"}
    return _check_loss(result["loss"]), weight, logs


def check_log_names(logs: Iterable[str], used_names: Iterable[str]) -> None:
    """Raises an error if `train_step` returned a log with the name of another log."""
    for name in logs:
        if name in set(used_names):
            raise InvalidInputError(
                f"`train_step` returns {name!r}, which is also the name of a metric of the model, "
                "or of a log of the trainer. Give it another name."
            )


def _check_loss(loss: Any) -> Any:
    tensor = ops.convert_to_tensor(loss)
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if len(tensor.shape) or not keras.backend.is_float_dtype(dtype):
        raise InvalidInputError(
            "`train_step` must return one floating-point number as the loss, such as the mean over "
            f"the batch; it returned {dtype} of shape {tuple(tensor.shape)}."
        )
    return tensor

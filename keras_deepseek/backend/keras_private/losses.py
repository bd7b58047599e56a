"""Access to the loss of a compiled model, in float32."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes


def compute_training_loss(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any
) -> Any:
    """Returns the loss of a compiled model with its layers' losses. It respects an override."""
    return model._compute_loss(x, y, y_pred, sample_weight=sample_weight, training=True)


@contextmanager
def count_rows_in_losses(model: keras.Model, num_rows: Any, factor: Any) -> Iterator[None]:
    """Context manager in which the logged loss of each output counts by the rows of the batch.

    TensorFlow may not know their number when it traces a step, and Keras then counts each batch,
    or part of one, as one row. The logged losses are multiplied by `factor`.
    """

    def count(metric: keras.metrics.Metric) -> Callable[..., Any]:
        def update_state(value: Any, sample_weight: Any = None) -> Any:
            rows = num_rows if sample_weight is None else sample_weight
            return type(metric).update_state(metric, value * factor, rows)

        return update_state

    with contextlib.ExitStack() as stack:
        for metric in model._compile_loss.metrics if model._compile_loss else ():
            stack.enter_context(own_attributes(metric, update_state=count(metric)))
        yield


def copy_weights(sample_weight: Any) -> Any:
    """Copies sample weights: on PyTorch, Keras multiplies them by a mask in place.

    The backward pass needs those of the loss unchanged, and the next epoch may need the batch's.
    """
    return keras.tree.map_structure(
        lambda weights: None if weights is None else keras.ops.copy(weights), sample_weight
    )


@contextmanager
def losses_in_float32(model: keras.Model) -> Iterator[None]:
    """Makes a compiled model compute losses and metrics in float32 until the block ends.

    It casts the outputs, and the losses that layers add: TensorFlow adds no numbers of two dtypes.
    Only half precision is cast.
    """

    def with_float32_outputs(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(
            x: Any = None, y: Any = None, y_pred: Any = None, *arguments: Any, **more: Any
        ) -> Any:
            return method(x, y, keras.tree.map_structure(in_float32, y_pred), *arguments, **more)

        return call

    aggregate = model._aggregate_additional_loss
    with own_attributes(
        model,
        _aggregate_additional_loss=lambda loss: aggregate(in_float32(loss)),
        compute_loss=with_float32_outputs(model.compute_loss),
        compute_metrics=with_float32_outputs(model.compute_metrics),
    ):
        yield


def in_float32(tensor: Any) -> Any:
    """Casts a half precision tensor with its mask to float32; returns others unchanged."""
    if keras.backend.standardize_dtype(tensor.dtype) not in ("float16", "bfloat16"):
        return tensor
    mask = keras.src.backend.get_keras_mask(tensor)
    whole = keras.ops.cast(tensor, "float32")
    if mask is not None:
        keras.src.backend.set_keras_mask(whole, mask)
    return whole


def track_loss(model: keras.Model, loss: Any, num_rows: Any) -> None:
    """Adds a batch to the running mean of a compiled model's loss."""
    tracker = model._loss_tracker
    if type(tracker) is not keras.metrics.Mean:
        tracker.update_state(loss, sample_weight=num_rows)
        return
    # The same as `update_state` for one number, without the cost of shapes and masks.
    num_rows = keras.ops.cast(num_rows, tracker.dtype)
    tracker.total.assign_add(keras.ops.cast(loss, tracker.dtype) * num_rows)
    tracker.count.assign_add(num_rows)

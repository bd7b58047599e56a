"""The loss and the metrics of a compiled model."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes

_OF_THE_MODEL = "of_the_model"
"""The name under which a wrapper of a model's method holds that method."""


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


def has_own_metrics(model: keras.Model) -> bool:
    """Returns True if a model, or its class, has a `compute_metrics` in place of Keras's."""
    method = getattr(model.compute_metrics, _OF_THE_MODEL, model.compute_metrics)
    return getattr(method, "__func__", None) is not keras.Model.compute_metrics


@contextmanager
def losses_in_float32(model: keras.Model) -> Iterator[None]:
    """Makes a compiled model compute losses and metrics in float32 until the block ends.

    It casts the outputs, and the losses that layers add: TensorFlow adds no numbers of two dtypes.
    Only half precision is cast.
    """

    def with_float32_outputs(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(
            x: Any = None, y: Any = None, y_pred: Any = None, *arguments: Any, **options: Any
        ) -> Any:
            return method(x, y, keras.tree.map_structure(in_float32, y_pred), *arguments, **options)

        vars(call)[_OF_THE_MODEL] = method
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


def update_metrics(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any
) -> dict[str, Any]:
    """Updates the metrics of a compiled model by a batch, with outputs in float32.

    It respects an override of `compute_metrics`, and returns what its result has beside metrics.
    """

    def detach(output: Any) -> Any:
        detached = keras.ops.stop_gradient(output)
        mask = keras.src.backend.get_keras_mask(output)
        if mask is not None:
            keras.src.backend.set_keras_mask(detached, mask)
        return in_float32(detached)

    y_pred = keras.tree.map_structure(detach, y_pred)
    if has_own_metrics(model):
        results = model.compute_metrics(x, y, y_pred, sample_weight) or {}
        of_metrics = model.get_metrics_result()
        return {name: value for name, value in results.items() if name not in of_metrics}
    if model._compile_metrics is not None:  # Results are computed once, at the end of the step.
        model._compile_metrics.update_state(y, y_pred, sample_weight)
    return {}


def order_metrics(model: keras.Model, logs: dict[str, Any]) -> Any:
    """Converts a dict of logs to what `evaluate` returns by default: a list, or its only number."""
    return model._flatten_metrics_in_order(logs)


@contextmanager
def watch_metric_updates(model: keras.Model) -> Iterator[list[None]]:
    """Context manager that yields a list, non-empty once compiled metrics are updated.

    It is non-empty from the start if there are none, or if the model overrides `compute_metrics`.
    """
    metrics = model._compile_metrics
    updates: list[None] = []
    if metrics is None or has_own_metrics(model):
        yield [None]
        return

    def update_state(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        updates.append(None)
        return type(metrics).update_state(metrics, y_true, y_pred, copy_weights(sample_weight))

    with own_attributes(metrics, update_state=update_state):
        yield updates


def compiled_metric_names(model: keras.Model) -> list[str]:
    """Returns the names under which the compiled metrics of a model are logged."""
    return [] if model._compile_metrics is None else list(model._compile_metrics.result())


def given_metric_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of the metric objects that were passed to `model.compile`.

    They exist before the model is compiled. Keras adds them to the model at the first batch.
    """
    compiled = model._compile_metrics
    if compiled is None:
        return []
    user_metrics = keras.tree.flatten([compiled._user_metrics, compiled._user_weighted_metrics])
    metrics = [metric for metric in user_metrics if isinstance(metric, keras.metrics.Metric)]
    return [variable for metric in metrics for variable in metric.variables]


@contextmanager
def add_metric(model: keras.Model, metric: keras.metrics.Metric) -> Iterator[None]:
    """Context manager that adds a metric to a model. The model does not save it."""
    model._metrics.append(metric)
    _forget_validation(model)
    try:
        yield
    finally:
        model._metrics[:] = [tracked for tracked in model._metrics if tracked is not metric]
        _forget_validation(model)


def _forget_validation(model: keras.Model) -> None:
    """Makes Keras compile the test function again, if its number of metrics is fixed."""
    if keras.distribution.distribution() is not None:
        model.test_function = None

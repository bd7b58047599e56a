"""Access to the metrics of a compiled model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.losses import copy_weights, in_float32
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes


def update_metrics(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
    """Updates the metrics of a compiled model by a batch, with outputs in float32.

    It respects an override of `compute_metrics`.
    """

    def detach(output: Any) -> Any:
        detached = keras.ops.stop_gradient(output)
        mask = keras.src.backend.get_keras_mask(output)
        if mask is not None:
            keras.src.backend.set_keras_mask(detached, mask)
        return in_float32(detached)

    y_pred = keras.tree.map_structure(detach, y_pred)
    if type(model).compute_metrics is not keras.Model.compute_metrics:
        model.compute_metrics(x, y, y_pred, sample_weight)
    elif model._compile_metrics is not None:  # Results are computed once, at the end of the step.
        model._compile_metrics.update_state(y, y_pred, sample_weight)


def order_metrics(model: keras.Model, logs: dict[str, Any]) -> Any:
    """Converts a dict of logs to what `evaluate` returns by default: a list, or its only number."""
    return model._flatten_metrics_in_order(logs)


@contextmanager
def watch_metric_updates(model: keras.Model) -> Iterator[list[None]]:
    """Context manager that yields a list, non-empty once compiled metrics are updated.

    It is non-empty from the start if there are none, or if the class overrides `compute_metrics`.
    """
    metrics = model._compile_metrics
    updates: list[None] = []
    if metrics is None or type(model).compute_metrics is not keras.Model.compute_metrics:
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

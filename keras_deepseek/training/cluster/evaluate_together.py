"""Evaluation and prediction by several processes, each of which computes some of the rows."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.data.array_feed import with_fed_arrays
from keras_deepseek.backend.keras_private.callbacks import grouped_callbacks
from keras_deepseek.backend.keras_private.loss_and_metrics import order_metrics
from keras_deepseek.backend.keras_private.trainers import (
    is_validation_of_fit,
    public_evaluate_options,
)
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.backend.tensor_values import read_values

_BATCH_SIZE = 32  # Keras's default.


def evaluate_together(
    model: keras.Model, x: Any, y: Any, batch_size: int | None, processes: Processes, **options: Any
) -> Any:
    """Returns the result of `keras.Model.evaluate`, computed by all processes together.

    Model and data must be the same on each process. The batches are those of a single process; each
    process takes some of them, and the changes of the metrics are summed. Each process evaluates
    all data if they are not arrays, if the model has its own `test_step`, or if there are
    callbacks. The default `batch_size` is 32.
    """
    if processes.rank > 0:
        options["verbose"] = 0
    data = x, y, options.get("sample_weight")
    evaluate = functools.partial(type(model).evaluate, model)  # Not that of `validating_together`.
    if options.get("callbacks") or not _is_shared(model, data, options.get("steps"), processes):
        arguments = {**without_none(x=x, y=y, batch_size=batch_size), **options}
        with grouped_callbacks():
            return evaluate(**with_fed_arrays(model, "evaluate", arguments))
    batch_size = batch_size or _BATCH_SIZE
    num_rows = int(_arrays(data)[0].shape[0])
    num_batches = -(-num_rows // batch_size)
    share = -(-num_batches // processes.world_size) * batch_size  # Rows of a process.
    first = processes.rank * share
    has_rows = first < num_rows
    # A process without rows evaluates one that does not count, so that its metrics get variables.
    rows = slice(first, first + share) if has_rows else slice(0, 1)
    x, y, options["sample_weight"] = keras.tree.map_structure(
        lambda array: None if array is None else array[rows], data
    )
    returns_dict = options.pop("return_dict", False)
    evaluate(x=x, **without_none(y=y, batch_size=batch_size), **options)
    _sum_metrics(model, processes, counts=has_rows)
    results = {name: _as_number(value) for name, value in model.get_metrics_result().items()}
    return results if returns_dict else order_metrics(model, results)


@contextmanager
def validating_together(model: keras.Model, processes: Processes) -> Iterator[None]:
    """Context manager in which all processes share the validation of `fit`.

    It replaces `model.evaluate`, which `fit` calls. Callbacks are told of the begin and the end of
    the validation. If a callback watches test batches, each process evaluates all of them. The
    model must be the same on each process.
    """

    def evaluate(*arguments: Any, **options: Any) -> Any:
        """Replaces `model.evaluate`; calls of others than `fit` are passed on to Keras."""
        by_keras = functools.partial(type(model).evaluate, model)
        data = [options.get(name) for name in ("x", "y", "sample_weight")]
        # The user may call `evaluate` on one rank only: that must not wait for the others.
        is_of_fit = not arguments and is_validation_of_fit(options)
        if not is_of_fit or not _is_shared(model, data, options.get("steps"), processes):
            return by_keras(*arguments, **options)
        callbacks = options["callbacks"]
        watches = any(map(_watches_batches, callbacks.callbacks))
        if any(processes.gather(np.array(watches))):  # Rank 0 has callbacks that others don't have.
            return by_keras(**options)
        callbacks.on_test_begin()
        logs = evaluate_together(
            model, processes=processes, verbose=0, **public_evaluate_options(options)
        )
        callbacks.on_test_end(logs)
        return logs

    if processes.world_size == 1 or processes.is_one_program:
        yield
        return
    model.evaluate = evaluate
    try:
        yield
    finally:
        del model.evaluate


def _is_shared(model: keras.Model, data: Any, steps: int | None, processes: Processes) -> bool:
    """Returns True if several processes can divide an evaluation of arrays among them."""
    return (
        processes.world_size > 1
        and not processes.is_one_program  # Its arrays span all processes.
        and type(model).test_step is keras.Model.test_step
        and steps is None
        and all(getattr(array, "shape", ()) for array in _arrays(data))
    )


def without_none(**arguments: Any) -> dict[str, Any]:
    """Returns the arguments that are not `None`, since an overridden method may lack the others."""
    return {name: value for name, value in arguments.items() if value is not None}


def _arrays(data: Any) -> list[Any]:
    return [array for array in keras.tree.flatten(data) if array is not None]


def _watches_batches(callback: keras.callbacks.Callback) -> bool:
    """Returns True if a callback overrides a method for batches of an evaluation."""
    return any(
        getattr(getattr(callback, name), "__func__", None)
        is not getattr(keras.callbacks.Callback, name)
        for name in ("on_test_batch_begin", "on_test_batch_end")
    )


def _sum_metrics(model: keras.Model, processes: Processes, *, counts: bool) -> None:
    """Sums the metrics' variables over all processes, in each of them.

    `counts` is False if this process has evaluated only a row that does not count.
    """
    variables = model.metrics_variables
    added = read_values(variables)
    model.reset_metrics()
    start = read_values(variables)
    changes = [
        (value.astype("float64") - initial) * counts
        for value, initial in zip(added, start, strict=True)
    ]
    flat = np.concatenate([change.reshape(-1) for change in changes])
    total, end = np.sum(processes.gather(flat), axis=0), 0
    for variable, initial in zip(variables, start, strict=True):
        begin, end = end, end + initial.size
        value = initial + total[begin:end].reshape(initial.shape)
        variable.assign(keras.ops.cast(value, variable.dtype))


def _as_number(value: Any) -> Any:
    array = keras.ops.convert_to_numpy(value)
    return float(array) if array.ndim == 0 else array


def predict_together(model: keras.Model, x: Any, processes: Processes, **options: Any) -> Any:
    """Returns the outputs of all rows, in their order, computed by all processes together.

    Model and inputs must be the same on each process. Each takes some of the rows of arrays. If the
    data come in batches, each predicts all.
    """
    if processes.world_size == 1:
        with grouped_callbacks():
            return model.predict(**with_fed_arrays(model, "predict", {"x": x, **options}))
    if processes.rank > 0:
        options["verbose"] = 0
    if processes.is_one_program:
        with processes.whole_outputs(model):
            return model.predict(x, **options)
    arrays = keras.tree.flatten(x)
    if options.get("steps") is not None or not all(hasattr(array, "shape") for array in arrays):
        return model.predict(x, **options)
    num_rows = arrays[0].shape[0]
    share = -(-num_rows // processes.world_size)  # Rows of a process, rounded up.
    first = processes.rank * share
    num_own_rows = min(max(num_rows - first, 0), share)
    # A process without rows predicts one and drops it: the empty outputs need a shape.
    begin = min(first, num_rows - 1)
    part = keras.tree.map_structure(lambda array: array[begin : begin + max(num_own_rows, 1)], x)
    batch_size = options.pop("batch_size", None) or _BATCH_SIZE
    options["batch_size"] = -(-batch_size // processes.world_size)
    outputs = model.predict(part, **options)
    return keras.tree.map_structure(
        lambda output: np.concatenate(processes.gather(output[:num_own_rows])), outputs
    )

"""Private names of Keras that a training step of ours can't do without.

Each has a canary test that says what broke when a Keras release moves it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras


def nested_stateless_scope(
    mapping: Iterable[tuple[keras.Variable, Any]],
) -> keras.StatelessScope:
    """Returns a scope in which variables have other values, and all others those of the one around.

    Args:
        mapping: Variables and their values.
    """
    scope = keras.StatelessScope(list(mapping), collect_losses=True)
    around = keras.src.backend.common.stateless_scope.get_stateless_scope()
    if around is not None:
        scope.state_mapping = {**around.state_mapping, **scope.state_mapping}
    return scope


def own_train_step(model: keras.Model) -> bool:
    """Returns whether a model's class, or the model itself, has a training step of its own."""
    return "train_step" in vars(model) or type(model).train_step is not keras.Model.train_step


@contextmanager
def lent_train_step(model: keras.Model, train_step: Callable[..., Any]) -> Iterator[None]:
    """Makes a model have another training step until the block ends."""
    own = vars(model).get("train_step")
    model.train_step = train_step
    try:
        yield
    finally:
        if own is None:
            del model.train_step
        else:
            model.train_step = own


def compilation(model: keras.Model) -> object:
    """Returns what `model.compile` made: another object after each call of it."""
    return model._compile_config


def call_for_training(model: keras.Model, x: Any) -> Any:
    """Returns the outputs of a model on inputs, in training mode where it knows one."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def compute_training_loss(
    model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any
) -> Any:
    """Returns the loss of a compiled model, with what its layers added; an override is heeded."""
    return model._compute_loss(x, y, y_pred, sample_weight=sample_weight, training=True)


def update_metrics(model: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
    """Tells the metrics of a compiled model of a batch; an override of `compute_metrics` is heeded.

    Nothing is differentiated through them.
    """

    def detach(output: Any) -> Any:
        detached = keras.ops.stop_gradient(output)
        mask = keras.src.backend.get_keras_mask(output)
        if mask is not None:
            keras.src.backend.set_keras_mask(detached, mask)
        return detached

    y_pred = keras.tree.map_structure(detach, y_pred)
    if type(model).compute_metrics is not keras.Model.compute_metrics:
        model.compute_metrics(x, y, y_pred, sample_weight)
    elif model._compile_metrics is not None:  # The results are computed once, at the step's end.
        model._compile_metrics.update_state(y, y_pred, sample_weight)


def track_loss(model: keras.Model, loss: Any, num_rows: Any) -> None:
    """Tells the mean of a compiled model's loss of a batch."""
    model._loss_tracker.update_state(loss, sample_weight=num_rows)


def output_masks(y_pred: Any) -> list[Any]:
    """Returns the masks that Keras's layers have put on outputs, `None` where there is none."""
    return [keras.src.backend.get_keras_mask(output) for output in keras.tree.flatten(y_pred)]

"""The rule for steps whose operations may be recorded, and run without their Python."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.trainers import compile_arguments
from keras_deepseek.graph.known_code import find_foreign_code, find_unrecordable_layer

_LOSS_METHODS = ("compute_loss", "compute_metrics")
_COMPILED = ("loss", "metrics", "weighted_metrics")
_KNOWN_SCALES = (
    keras.optimizers.Optimizer.scale_loss,
    keras.optimizers.LossScaleOptimizer.scale_loss,
)


def find_training_obstacle(model: keras.Model, compute: Callable[..., Any] | None) -> str | None:
    """Returns a reason why the training step of a model can't be recorded, or `None`.

    `compute` is the override of `Trainer.train_step`, or `None`.
    """
    if compute is not None:
        return "the trainer has its own `train_step`"
    optimizer = model.optimizer  # The update is outside of the recording, and so is its rate.
    if type(optimizer).scale_loss not in _KNOWN_SCALES or "scale_loss" in vars(optimizer):
        return f"{type(optimizer).__name__}.scale_loss is not known"
    return _find(model, _LOSS_METHODS, _compiled_parts(model))


def find_evaluation_obstacle(model: keras.Model, step: str) -> str | None:
    """Returns a reason why `test_step` or `predict_step` can't be recorded, or `None`."""
    if step == "predict_step":
        return _find(model, (step,), {})
    return _find(model, (step, *_LOSS_METHODS), _compiled_parts(model))


def _compiled_parts(model: keras.Model) -> dict[str, Any]:
    settings = compile_arguments(model) if model.compiled else {}
    regularizers = [
        *(variable.regularizer for variable in model.trainable_variables),
        *(getattr(layer, "activity_regularizer", None) for layer in flatten_layers(model)),
    ]
    return {**{name: settings.get(name) for name in _COMPILED}, "regularizer": regularizers}


def _find(model: keras.Model, methods: Sequence[str], parts: dict[str, Any]) -> str | None:
    for name in methods:
        is_replaced = name in _LOSS_METHODS and name in vars(model)
        if is_replaced or getattr(type(model), name) is not getattr(keras.Model, name):
            return f"{type(model).__name__}.{name} is not known"
    for name, part in parts.items():
        for leaf in keras.tree.flatten(part):
            if leaf is None or isinstance(leaf, str):
                continue
            if find_foreign_code(_Holder(leaf)) or find_foreign_code(leaf):
                text = getattr(leaf, "__name__", type(leaf).__name__)
                return f"the {name} {text!r} has code that is not known"
    return find_unrecordable_layer(model)


class _Holder:
    """An object that holds code, such as a loss function, as a layer holds its activation."""

    def __init__(self, code: Any) -> None:
        self.code = code

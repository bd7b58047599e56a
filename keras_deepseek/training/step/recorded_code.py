"""The rule for models whose steps may run without Python."""

from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.trainers import compile_arguments
from keras_deepseek.graph.known_code import find_foreign_code

_METHODS = ("compute_loss", "compute_metrics", "test_step", "predict_step")


def find_obstacle(model: keras.Model, compute: Callable[..., Any] | None = None) -> str | None:
    """Returns the code of a model that a recording of its step would not see, or `None`.

    `compute` is the override of `Trainer.train_step`, or `None`.
    """
    for layer in flatten_layers(model):
        if code := find_foreign_code(layer):
            return f"layer {layer.name!r} has code that is not known, {code}"
    for name in _METHODS:
        if getattr(type(model), name) is not getattr(keras.Model, name):
            return f"{type(model).__name__}.{name} is not known"
    settings = compile_arguments(model) if model.compiled else {}
    parts = {name: settings.get(name) for name in ("loss", "metrics", "weighted_metrics")}
    parts["optimizer"] = getattr(model, "optimizer", None)
    for name, part in {**parts, "train_step": compute}.items():
        for leaf in keras.tree.flatten(part):
            if leaf is None or isinstance(leaf, str):
                continue
            if code := find_foreign_code(_Holder(leaf)) or find_foreign_code(leaf):
                return f"the {name} has code that is not known, {code}"
    return None


class _Holder:
    """An object that holds code, such as a loss function, as a layer holds its activation."""

    def __init__(self, code: Any) -> None:
        self.code = code

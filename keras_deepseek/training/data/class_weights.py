"""Weights of classes by output, for models with several outputs."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, unknown_name_message


def weigh_classes(model: keras.Model, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces a `class_weight` by output in the arguments of `fit` by a `sample_weight`.

    Raises:
        InvalidInputError: The model has several outputs and the weights are not by output, an
            output is unknown, or other arguments do not go with them.
    """
    arguments, class_weight = dict(arguments), arguments.get("class_weight")
    if class_weight is None:
        return arguments
    is_by_output = any(isinstance(weights, Mapping) for weights in class_weight.values())
    y = arguments.get("y")
    names = list(y) if isinstance(y, Mapping) else list(getattr(model, "output_names", None) or ())
    if not is_by_output and len(names) <= 1:
        return arguments
    example = dict.fromkeys(names[:2] or ["kind"], "...")
    advice = f"or weigh rows by sample_weight={example}, an array for each output"
    if not is_by_output:
        raise InvalidInputError(
            f"Model {model.name!r} has the outputs {names}, and `class_weight` is not by output: "
            f"pass class_weight={{{names[0]!r}: {class_weight!r}}}, {advice}."
        )
    if y is None or not isinstance(y, Mapping | list | tuple):
        raise InvalidInputError(
            "`class_weight` by output needs targets in arrays, as in y={'kind': ..., 'price': ...}:"
            f" let the data yield (x, y, sample_weight), with sample_weight={example}."
        )
    if arguments.get("sample_weight") is not None:
        raise InvalidInputError(
            "Received `class_weight` by output and `sample_weight`: multiply them, and pass only "
            f"sample_weight={example}, an array for each output."
        )
    if arguments.get("validation_split"):
        raise InvalidInputError(
            "`class_weight` by output does not weigh validation data, which validation_split takes "
            "from the same arrays: pass validation_data=(x, y) in its place."
        )
    if unknown := sorted(set(class_weight) - set(names), key=str):
        raise InvalidInputError(unknown_name_message("output in class_weight", unknown[0], names))
    targets = y if isinstance(y, Mapping) else dict(zip(names, y, strict=True))
    weights = {
        name: _weigh(name, target, class_weight.get(name, {})) for name, target in targets.items()
    }
    arguments["sample_weight"] = weights if isinstance(y, Mapping) else list(weights.values())
    del arguments["class_weight"]
    return arguments


def _weigh(name: str, target: Any, weights: Any) -> Array:
    """Returns the weight of each row by its class, 1 for a class that has none."""
    if not isinstance(weights, Mapping):
        raise InvalidInputError(
            f"`class_weight` of output {name!r} must be a dict of weights by class, as in "
            f"{{0: 1.0, 1: 3.0}}; received {weights!r}."
        )
    is_tensor = keras.ops.is_tensor(target)
    labels = np.asarray(keras.ops.convert_to_numpy(target) if is_tensor else target)
    sample_weight = np.ones(len(labels), keras.config.floatx())
    if not weights:
        return sample_weight
    if labels.ndim > 1:  # One-hot rows, or a column of classes, as in Keras.
        labels = labels.argmax(axis=-1) if labels.shape[-1] != 1 else labels[..., 0]
    if labels.ndim != 1:
        raise InvalidInputError(
            f"`class_weight` of output {name!r} needs a class for each row; its targets have the "
            f"shape {labels.shape}. Pass a sample_weight of that shape."
        )
    for label, weight in weights.items():
        sample_weight[np.rint(labels) == label] = weight
    return sample_weight

"""A Functional model that `keras.models.clone_model` clones correctly or refuses.

Keras clones each layer on its own. An embedding that another layer holds as well would become two.
"""

from typing import Any

import keras

from keras_deepseek.errors import NotSupportedError


class CloneCheckedModel(keras.Model):
    """A Functional model that raises an error if `keras.models.clone_model` can't clone it."""

    def _run_through_graph(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_cloning(inputs, kwargs):
            return super()._run_through_graph(inputs, *args, **kwargs)
        for operation in _sharing_operations(self):
            if kwargs["operation_fn"](operation) is not operation:
                raise _refusal(self, f"{operation.name!r} shares weights with another layer")
        try:
            return super()._run_through_graph(inputs, *args, **kwargs)
        except NotImplementedError as error:  # Keras raises it for a layer without a config.
            raise _refusal(self, "one of its layers is not made by a config") from error


def _is_cloning(inputs: Any, arguments: dict[str, Any]) -> bool:
    """Returns True if `clone_model` is calling: only it passes symbols and a `call_fn`."""
    return "call_fn" in arguments and all(
        isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(inputs)
    )


def _sharing_operations(model: keras.Model) -> list[keras.Operation]:
    """Returns the operations of a graph that share weights with other operations of it."""
    operations = model.operations
    weights = [
        {id(weight) for weight in getattr(operation, "weights", ())} for operation in operations
    ]
    counts: dict[int, int] = {}
    for weight_ids in weights:
        for key in weight_ids:
            counts[key] = counts.get(key, 0) + 1
    return [
        operation
        for operation, weight_ids in zip(operations, weights, strict=True)
        if any(counts[key] > 1 for key in weight_ids)
    ]


def _refusal(model: keras.Model, reason: str) -> NotSupportedError:
    """Returns the error that says why a model can't be cloned."""
    return NotSupportedError(
        f"`keras.models.clone_model` can't clone a {type(model).__name__} layer by layer: "
        f"{reason}. Make a copy by `type(model).from_config(model.get_config())`, and copy the "
        "weights by `copy.set_weights(model.get_weights())`."
    )

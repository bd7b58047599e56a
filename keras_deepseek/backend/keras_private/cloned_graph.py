"""What `keras.models.clone_model` can't do with a graph whose layers share weights is an error.

It makes each layer anew by itself: of an embedding that also stands inside another layer there are
two then, and nothing says so.
"""

from typing import Any

import keras

from keras_deepseek.errors import NotSupportedError


class CloneCheckedModel(keras.Model):
    """A Functional model that `keras.models.clone_model` makes right, or refuses."""

    def _run_through_graph(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_cloning(inputs, kwargs):
            return super()._run_through_graph(inputs, *args, **kwargs)
        for operation in _sharing_operations(self):
            if kwargs["operation_fn"](operation) is not operation:
                raise _refusal(self, f"{operation.name!r} shares weights with another layer")
        try:
            return super()._run_through_graph(inputs, *args, **kwargs)
        except NotImplementedError as error:  # That of Keras for a layer without a config.
            raise _refusal(self, "one of its layers is not made by a config") from error


def _is_cloning(inputs: Any, arguments: dict[str, Any]) -> bool:
    """`clone_model` alone gives symbols and a `call_fn`, be it None: it has no hook of its own."""
    return "call_fn" in arguments and all(
        isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(inputs)
    )


def _sharing_operations(model: keras.Model) -> list[keras.Operation]:
    """Returns the operations of a graph of whose weights another one has some too."""
    operations = model.operations
    weights = [{id(weight) for weight in getattr(each, "weights", ())} for each in operations]
    counts: dict[int, int] = {}
    for own in weights:
        for key in own:
            counts[key] = counts.get(key, 0) + 1
    return [
        each
        for each, own in zip(operations, weights, strict=True)
        if any(counts[key] > 1 for key in own)
    ]


def _refusal(model: keras.Model, reason: str) -> NotSupportedError:
    return NotSupportedError(
        f"`keras.models.clone_model` makes each layer anew by itself, which can't be done with a "
        f"{type(model).__name__}: {reason}. Make a copy by `type(model).from_config("
        "model.get_config())`; `copy.set_weights(model.get_weights())` gives it the weights."
    )

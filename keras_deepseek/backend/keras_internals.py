"""Private names of Keras that the package can't do without.

Each has a canary test that says what broke when a Keras release moves it.
"""

from typing import Any

import keras


def flatten_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns the model and every layer inside it, at any depth.

    `model.layers` stops at the first level: the projections inside an attention layer, or the cell
    inside a recurrent one, are found here alone.
    """
    return list(model._flatten_layers())


def first_call_shapes(model: keras.Model) -> dict[str, Any]:
    """Returns the shapes that a subclassed model was built with, by argument of `call`."""
    return dict(_untracked(model._build_shapes_dict or {}))


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the objects that `model.compile` was called with, by argument.

    The public `get_compile_config` serializes them, and so loses metrics and losses that are plain
    functions.
    """
    return dict(model._compile_config.config)


def _untracked(structure: Any) -> Any:
    """Returns Keras's tracked containers as plain ones, which JAX needs."""
    if isinstance(structure, dict):
        return {name: _untracked(value) for name, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_untracked(value) for value in structure)
    return structure

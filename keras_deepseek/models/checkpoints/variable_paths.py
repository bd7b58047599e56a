"""A checkpoint map that uses each variable's path as the name of its tensor.

`PresetModel` uses it for families that have no `checkpoint_map.py`.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import inner_layers, own_variables
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry, copied_entry

_COUNTER = re.compile(r"_\d+$")
_LORA_PREFIX = "lora_"


def path_entries(model: keras.Model) -> list[CheckpointEntry]:
    """Returns an entry for each weight of a built model, named by its path.

    Non-trainable weights are included. A path joins the names of the layers around a weight and its
    own name, as in `"backbone/stem_conv/kernel"`, without the name of the model. Names that Keras
    generated are numbered anew in each layer, so they do not depend on other layers in the process.
    Seeds are left out. A LoRA is left out too: it is added to its kernel.
    """
    weights = {id(weight) for weight in model.weights}
    paths: dict[str, keras.Variable] = {}
    visited_ids: set[int] = set()
    for path, variable in _walk(model):
        if id(variable) in visited_ids or id(variable) not in weights:
            continue
        if path in paths:
            raise InvalidInputError(
                f"{model.name!r} has two weights with the path {path!r}: {paths[path].path!r} of "
                f"shape {tuple(paths[path].shape)} and {variable.path!r} of shape "
                f"{tuple(variable.shape)}. Give their layers different names."
            )
        visited_ids.add(id(variable))
        paths[path] = variable
    if not paths:
        raise InvalidInputError(f"{model.name!r} has no weights. Build it, or call it once.")
    return [copied_entry(variable, path) for path, variable in paths.items()]


def _walk(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Variable]]:
    variables = own_variables(layer)
    if getattr(layer, "lora_enabled", False):
        variables = [
            variable for variable in variables if not variable.name.startswith(_LORA_PREFIX)
        ]
    for name, variable in _name_all(variables, ["variable"] * len(variables)):
        yield prefix + name, variable
    # A layer that is also an attribute is listed twice.
    layers = list({id(inner_layer): inner_layer for inner_layer in inner_layers(layer)}.values())
    for name, inner in _name_all(layers, [type(inner_layer).__name__ for inner_layer in layers]):
        yield from _walk(inner, f"{prefix}{name}/")


def _name_all(objects: Sequence[Any], kinds: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields objects with their names; names that Keras generated are renumbered."""
    counts: dict[str, count[int]] = {}
    for named, kind in zip(objects, kinds, strict=True):
        base = _COUNTER.sub("", named.name)
        if base.replace("_", "") != kind.replace("_", "").lower():
            yield named.name, named
            continue
        number = next(counts.setdefault(base, count()))
        yield (f"{base}_{number}" if number else base), named

"""Which layer of a model is for which device: by patterns of layers' names."""

import difflib
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from keras_deepseek.backend.keras_private.layers import inner_layers, is_container
from keras_deepseek.errors import InvalidInputError, unknown_name_message

_OF_REGULAR_EXPRESSIONS = frozenset(".()|+\\^${}")
_NEAREST = 10


@dataclass(frozen=True)
class LayerDevice:
    """Where a layer of a model computes.

    Args:
        layer: `keras.Layer`.
        device: string. As in `"gpu:1"`.
        is_away: boolean. Whether one that holds it computes on another device.
        comes_back: boolean. Whether one that holds it may do with the outputs what only works on
            its own device.
        meets_others: boolean. Whether tensors of layers on other devices may come in or go out.
    """

    layer: keras.Layer
    device: str
    is_away: bool
    comes_back: bool
    meets_others: bool


def find_layer_devices(model: keras.Model, devices: Mapping[str, str]) -> list[LayerDevice]:
    """Returns the device of each layer of a model, the model first.

    A layer has that of the first pattern that its name matches, else that of the layer that holds
    it; the model has the first device there is.

    Args:
        model: `keras.Model`, built.
        devices: Device by pattern.

    Raises:
        InvalidInputError: A pattern matches no layer.
    """
    default = next(iter(devices.values()))
    chosen: dict[int, str] = {}
    holders: dict[int, list[keras.Layer]] = {id(model): []}
    layers: list[keras.Layer] = []

    def visit(layer: keras.Layer, around: str) -> None:
        chosen[id(layer)] = around
        if layer is not model:
            matched = (device for each, device in devices.items() if matches(layer.name, each))
            chosen[id(layer)] = next(matched, around)
        layers.append(layer)
        for inner in inner_layers(layer):
            holders.setdefault(id(inner), []).append(layer)
            if id(inner) not in chosen:
                visit(inner, chosen[id(layer)])

    visit(model, default)
    names = sorted({layer.name for layer in layers[1:]})
    for pattern in devices:
        if not any(matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=_NEAREST, cutoff=0.0)
            raise InvalidInputError(unknown_name_message("layer in device_map", pattern, near))
    return [_describe(layer, chosen, holders[id(layer)]) for layer in layers]


def _describe(
    layer: keras.Layer, chosen: Mapping[int, str], holders: list[keras.Layer]
) -> LayerDevice:
    is_away = any(chosen[id(holder)] != chosen[id(layer)] for holder in holders)
    is_among_others = any(is_container(holder) for holder in holders)
    hands_on = is_container(layer) or not holders  # What comes out of it may be another's.
    return LayerDevice(
        layer,
        chosen[id(layer)],
        is_away=is_away,
        comes_back=not holders or not all(is_container(holder) for holder in holders),
        meets_others=is_away or is_among_others or hands_on,
    )


def check_pattern(pattern: str) -> None:
    """Raises an error where a pattern is none.

    Args:
        pattern: string.

    Raises:
        InvalidInputError: It is meant as a regular expression, and is not one.
    """
    if _OF_REGULAR_EXPRESSIONS & set(pattern):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidInputError(
                f"device_map[{pattern!r}] is no regular expression: {error}. Name layers as in "
                "'block_*' or 'block_[0-9]+'."
            ) from error


def matches(name: str, pattern: str) -> bool:
    r"""Returns whether a pattern is for a layer of such a name.

    As in `remat`, `*` and `?` stand for any characters; a pattern that has one of `.()|+\^${}` is
    a regular expression, which must match all of the name.

    Args:
        name: string.
        pattern: string.
    """
    if _OF_REGULAR_EXPRESSIONS & set(pattern):
        return name == pattern or re.fullmatch(pattern, name) is not None
    return fnmatch.fnmatch(name, pattern)

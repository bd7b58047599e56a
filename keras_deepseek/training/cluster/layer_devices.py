"""Assigns devices to layers by patterns of layer names."""

import difflib
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from keras_deepseek.backend.keras_private.layers import inner_layers, is_container
from keras_deepseek.errors import InvalidInputError, unknown_name_message

_OF_REGULAR_EXPRESSIONS = frozenset(".()|+\\^${}")
_NEAREST = 10  # The number of layer names that an error about an unknown one lists.


@dataclass(frozen=True)
class LayerDevice:
    """The device that computes a layer, and how it relates to the devices of other layers.

    Args:
        device: Such as `"gpu:1"`.
        is_away: True if an outer layer, which contains this one, computes on another device.
        comes_back: True if the outputs must return to the device of the outer layer, because the
            outer layer may use them in operations of its own.
        meets_others: True if inputs or outputs of the layer may be on another device.
    """

    layer: keras.Layer
    device: str
    is_away: bool
    comes_back: bool
    meets_others: bool


def find_layer_devices(model: keras.Model, devices: Mapping[str, str]) -> list[LayerDevice]:
    """Returns the device of each layer of a built model, the model first.

    A layer has the device of the first pattern that matches its name, else that of the layer that
    contains it. The model has the first device of the map.
    """
    default = next(iter(devices.values()))
    chosen: dict[int, str] = {}
    holders: dict[int, list[keras.Layer]] = {id(model): []}
    layers: list[keras.Layer] = []

    def visit(layer: keras.Layer, outer_device: str) -> None:
        chosen[id(layer)] = outer_device
        if layer is not model:
            matched = (
                device for pattern, device in devices.items() if matches(layer.name, pattern)
            )
            chosen[id(layer)] = next(matched, outer_device)
        layers.append(layer)
        for inner in inner_layers(layer):
            holders.setdefault(id(inner), []).append(layer)
            if id(inner) not in chosen:  # Several layers may contain it.
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
    """Compares a layer's device with those of its holders, the layers that contain it.

    `chosen` has each layer's device by its id.
    """
    is_away = any(chosen[id(holder)] != chosen[id(layer)] for holder in holders)
    is_among_others = any(is_container(holder) for holder in holders)
    # The outputs of a container, or of the model, may be those of a layer on another device.
    hands_on = is_container(layer) or not holders
    return LayerDevice(
        layer,
        chosen[id(layer)],
        is_away=is_away,
        comes_back=not holders or not all(is_container(holder) for holder in holders),
        meets_others=is_away or is_among_others or hands_on,
    )


def check_pattern(pattern: str) -> None:
    """Raises an error if a pattern is a malformed regular expression."""
    if _OF_REGULAR_EXPRESSIONS & set(pattern):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidInputError(
                f"device_map[{pattern!r}] is not a valid regular expression: {error}. Use a "
                "pattern such as 'block_*' or 'block_[0-9]+'."
            ) from error


def matches(name: str, pattern: str) -> bool:
    r"""Returns True if a pattern matches all of a layer's name.

    As in `remat`, `*` and `?` stand for any characters. A pattern with one of `.()|+\^${}` is a
    regular expression.
    """
    if _OF_REGULAR_EXPRESSIONS & set(pattern):
        return name == pattern or re.fullmatch(pattern, name) is not None
    return fnmatch.fnmatch(name, pattern)

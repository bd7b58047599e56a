"""The range of numbers that the inputs of a model expect, derived from the layers they reach."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.known_numbers import (
    RENUMBERING,
    KnownNumbers,
    known_numbers,
    padding_of,
)
from keras_deepseek.backend.keras_private.layer_precision import looks_rows_up
from keras_deepseek.backend.keras_private.layers import flatten_layers, functional_graph

_KEEPING = {
    *("Cast", "Concatenate", "ExpandDims", "Flatten", "GetItem", "Identity", "RepeatVector"),
    *("Reshape", "Split", "Squeeze", "Stack", "Transpose"),
}
"""The layers and operations that change no number."""


_KEEPING_ALL = _KEEPING - {"GetItem", "Split"}
"""Those that pass all numbers on. Parts of an input may be looked up in tables of other sizes."""


@dataclass(frozen=True)
class InputKind:
    """The range of numbers that a model's input expects.

    Args:
        vocabulary: The fewest rows of an `Embedding` that looks the input up, or `None`.
        scale: The mean and the standard deviation of a directly connected `Normalization` or
            `Rescaling`; they broadcast to a batch.
        mask_value: The padding of a directly connected `Masking`, `Hashing` or `IntegerLookup`.
        known: The numbers of a layer that knows only some, such as `IntegerLookup`.
    """

    vocabulary: int | None = None
    scale: tuple[Array, Array] | None = None
    mask_value: float | None = None
    known: KnownNumbers | None = None

    def joined(self, other: "InputKind") -> "InputKind":
        """Merges the kinds of an input that reaches two layers. The second has precedence."""
        rows = [kind.vocabulary for kind in (self, other) if kind.vocabulary is not None]
        return InputKind(
            min(rows, default=None),
            self.scale if other.scale is None else other.scale,
            self.mask_value if other.mask_value is None else other.mask_value,
            self.known if other.known is None else other.known.joined(self.known),
        )


def input_kinds(model: keras.Layer, num_inputs: int) -> list[InputKind]:
    """Returns the input kind of each flat input of a model.

    It follows an input through the graph and the models inside. A layer of another kind that holds
    embeddings counts for each input that reaches it.
    """
    graph = functional_graph(model)
    if graph is None:
        return [_kind_of_layer(model, num_inputs)] * num_inputs
    kinds = [InputKind()] * num_inputs
    places = {id(tensor): index for index, tensor in enumerate(graph.inputs)}
    for tensor, found in _taken_by_layers(graph):
        if found.vocabulary is not None:
            bound = InputKind(vocabulary=found.vocabulary)
            if id(tensor) in places and "float" in tensor.dtype:
                rows = np.arange(found.vocabulary)
                bound = replace(bound, known=KnownNumbers(rows, takes_others=False))
            for index in _sources(tensor, places):
                kinds[index] = kinds[index].joined(bound)
        if found.known is not None:
            as_it_is = InputKind(known=found.known, mask_value=found.mask_value)
            for index in _sources(tensor, places, keeping=_KEEPING):
                kinds[index] = kinds[index].joined(as_it_is)
        if id(tensor) in places:
            index = places[id(tensor)]
            at_once = InputKind(scale=found.scale, mask_value=found.mask_value)
            kinds[index] = kinds[index].joined(at_once)
    return kinds


def vocabulary_sizes(model: keras.Layer, num_inputs: int) -> list[int | None]:
    """Returns the rows of the smallest `Embedding` that looks up a whole input, for each input.

    It is `None` for an input that no `Embedding` of the graph takes unchanged.
    """
    graph = functional_graph(model)
    if graph is None:
        return [model.input_dim if looks_rows_up(model) else None] * num_inputs
    sizes: list[int | None] = [None] * num_inputs
    places = {id(tensor): index for index, tensor in enumerate(graph.inputs)}
    for layer in graph.operations:
        for node in layer._inbound_nodes if isinstance(layer, keras.Layer) else ():
            found = vocabulary_sizes(layer, len(node.input_tensors))
            for tensor, size in zip(node.input_tensors, found, strict=True):
                if size is not None:
                    for index in _sources(tensor, places, keeping=_KEEPING_ALL):
                        sizes[index] = min(size, sizes[index] or size)
    return sizes


def _kind_of_layer(layer: keras.Layer, num_inputs: int) -> InputKind:
    """Returns the input kind of a single layer, which is not a graph."""
    known = known_numbers(layer)
    inner = list(flatten_layers(layer))
    rows = [each.input_dim for each in inner if isinstance(each, keras.layers.Embedding)]
    if _renumbers(layer):
        rows = []
        # With several inputs it is unknown which one is looked up.
        if known is None and num_inputs == 1:
            for each in inner:
                if isinstance(each, keras.layers.IntegerLookup) and (one := known_numbers(each)):
                    known = one.joined(known)
    return InputKind(min(rows, default=None), _scale(layer), padding_of(layer), known)


def _renumbers(operation: Any) -> bool:
    """Returns True if an operation maps numbers to other numbers, as a lookup does."""
    is_layer = isinstance(operation, keras.Layer)
    return is_layer and any(isinstance(each, RENUMBERING) for each in flatten_layers(operation))


def _taken_by_layers(graph: Any) -> Iterator[tuple[keras.KerasTensor, InputKind]]:
    """Yields the tensors that a graph's layers take, each with the input kind of the layer."""
    for layer in graph.operations:
        for node in layer._inbound_nodes if isinstance(layer, keras.Layer) else ():
            found = input_kinds(layer, len(node.input_tensors))
            yield from zip(node.input_tensors, found, strict=True)


def _scale(layer: keras.Layer) -> tuple[Array, Array] | None:
    """Returns the mean and the deviation by which a layer standardizes, or `None`."""
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        mean, deviation = (
            np.asarray(keras.ops.convert_to_numpy(each), "float64")
            for each in (layer.mean, keras.ops.sqrt(layer.variance))
        )
        return mean, np.maximum(deviation, keras.backend.epsilon())
    if isinstance(layer, keras.layers.Rescaling):
        scale, offset = (np.asarray(each, "float64") for each in (layer.scale, layer.offset))
        return (-offset / scale, 1 / np.abs(scale)) if np.all(scale != 0) else None
    return None


def _sources(
    tensor: keras.KerasTensor, places: dict[int, int], *, keeping: Collection[str] | None = None
) -> Iterator[int]:
    """Yields the indices of the model inputs from which a tensor is computed.

    `places` maps the identity of an input to its index. Only operations of the classes `keeping`
    are followed; with `None` all are, except those that renumber.
    """
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        given = waiting.pop()
        if id(given) in seen:
            continue
        seen.add(id(given))
        if id(given) in places:
            yield places[id(given)]
            continue
        operation, node_index, _ = given._keras_history
        kind = type(operation).__name__
        if kind in keeping if keeping is not None else not _renumbers(operation):
            waiting.extend(operation._inbound_nodes[node_index].input_tensors)

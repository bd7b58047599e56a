"""The range of numbers that the inputs of a model expect, derived from the layers they reach."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layer_precision import looks_rows_up
from keras_deepseek.backend.keras_private.layers import flatten_layers, functional_graph
from keras_deepseek.backend.keras_private.sample_values import (
    RENUMBERING,
    SampleValues,
    find_sample_values,
    padding_of,
)

_KEEPING = {
    *("Cast", "Concatenate", "ExpandDims", "Flatten", "GetItem", "Identity", "RepeatVector"),
    *("Reshape", "Split", "Squeeze", "Stack", "Transpose"),
}
"""The layers and operations that change no number."""


_KEEPING_ALL = _KEEPING - {"GetItem", "Split"}
"""Those that pass all numbers on. Parts of an input may be looked up in tables of other sizes."""


@dataclass(frozen=True)
class SampleRange:
    """The range of numbers that a model's input expects.

    Args:
        vocabulary_size: The fewest rows of an `Embedding` that looks the input up, or `None`.
        scale: The mean and the standard deviation of a directly connected `Normalization` or
            `Rescaling`; they broadcast to a batch.
        mask_value: The padding of a directly connected `Masking`, `Hashing` or `IntegerLookup`.
        values: The numbers of a layer that knows only some, such as `IntegerLookup`.
    """

    vocabulary_size: int | None = None
    scale: tuple[Array, Array] | None = None
    mask_value: float | None = None
    values: SampleValues | None = None

    def joined(self, other: "SampleRange") -> "SampleRange":
        """Merges the ranges of an input that reaches two layers. The second has precedence."""
        sizes = [side.vocabulary_size for side in (self, other) if side.vocabulary_size is not None]
        return SampleRange(
            min(sizes, default=None),
            self.scale if other.scale is None else other.scale,
            self.mask_value if other.mask_value is None else other.mask_value,
            self.values if other.values is None else other.values.joined(self.values),
        )


def find_sample_ranges(model: keras.Layer, num_inputs: int) -> list[SampleRange]:
    """Returns the sample range of each flat input of a model.

    It follows an input through the graph and the models inside. A layer of another kind that holds
    embeddings counts for each input that reaches it.
    """
    graph = functional_graph(model)
    if graph is None:
        return [_range_of_layer(model, num_inputs)] * num_inputs
    ranges = [SampleRange()] * num_inputs
    input_indices = {id(tensor): index for index, tensor in enumerate(graph.inputs)}
    for tensor, layer_range in _layer_inputs(graph):
        if layer_range.vocabulary_size is not None:
            bound = SampleRange(vocabulary_size=layer_range.vocabulary_size)
            if id(tensor) in input_indices and "float" in tensor.dtype:
                rows = np.arange(layer_range.vocabulary_size)
                bound = replace(bound, values=SampleValues(rows, takes_others=False))
            for index in _sources(tensor, input_indices):
                ranges[index] = ranges[index].joined(bound)
        if layer_range.values is not None:
            unchanged = SampleRange(values=layer_range.values, mask_value=layer_range.mask_value)
            for index in _sources(tensor, input_indices, keeping=_KEEPING):
                ranges[index] = ranges[index].joined(unchanged)
        if id(tensor) in input_indices:
            index = input_indices[id(tensor)]
            direct = SampleRange(scale=layer_range.scale, mask_value=layer_range.mask_value)
            ranges[index] = ranges[index].joined(direct)
    return ranges


def vocabulary_sizes(model: keras.Layer, num_inputs: int) -> list[int | None]:
    """Returns the rows of the smallest `Embedding` that looks up a whole input, for each input.

    It is `None` for an input that no `Embedding` of the graph takes unchanged.
    """
    graph = functional_graph(model)
    if graph is None:
        return [model.input_dim if looks_rows_up(model) else None] * num_inputs
    sizes: list[int | None] = [None] * num_inputs
    input_indices = {id(tensor): index for index, tensor in enumerate(graph.inputs)}
    for layer in graph.operations:
        for node in layer._inbound_nodes if isinstance(layer, keras.Layer) else ():
            inner_sizes = vocabulary_sizes(layer, len(node.input_tensors))
            for tensor, size in zip(node.input_tensors, inner_sizes, strict=True):
                if size is not None:
                    for index in _sources(tensor, input_indices, keeping=_KEEPING_ALL):
                        sizes[index] = min(size, sizes[index] or size)
    return sizes


def _range_of_layer(layer: keras.Layer, num_inputs: int) -> SampleRange:
    """Returns the sample range of a single layer, which is not a graph."""
    values = find_sample_values(layer)
    sublayers = list(flatten_layers(layer))
    sizes = [
        sublayer.input_dim for sublayer in sublayers if isinstance(sublayer, keras.layers.Embedding)
    ]
    if _renumbers(layer):
        sizes = []
        # With several inputs it is unknown which one is looked up.
        if values is None and num_inputs == 1:
            for sublayer in sublayers:
                if isinstance(sublayer, keras.layers.IntegerLookup) and (
                    vocabulary := find_sample_values(sublayer)
                ):
                    values = vocabulary.joined(values)
    return SampleRange(min(sizes, default=None), _scale(layer), padding_of(layer), values)


def _renumbers(operation: Any) -> bool:
    """Returns True if an operation maps numbers to other numbers, as a lookup does."""
    is_layer = isinstance(operation, keras.Layer)
    return is_layer and any(
        isinstance(sublayer, RENUMBERING) for sublayer in flatten_layers(operation)
    )


def _layer_inputs(graph: Any) -> Iterator[tuple[keras.KerasTensor, SampleRange]]:
    """Yields each tensor that a layer of a graph takes, with the values that the layer accepts.

    For an embedding, they are the numbers of its rows.
    """
    for layer in graph.operations:
        for node in layer._inbound_nodes if isinstance(layer, keras.Layer) else ():
            ranges = find_sample_ranges(layer, len(node.input_tensors))
            yield from zip(node.input_tensors, ranges, strict=True)


def _scale(layer: keras.Layer) -> tuple[Array, Array] | None:
    """Returns the mean and the deviation by which a layer standardizes, or `None`."""
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        mean, deviation = (
            np.asarray(keras.ops.convert_to_numpy(statistic), "float64")
            for statistic in (layer.mean, keras.ops.sqrt(layer.variance))
        )
        return mean, np.maximum(deviation, keras.backend.epsilon())
    if isinstance(layer, keras.layers.Rescaling):
        scale, offset = (np.asarray(factor, "float64") for factor in (layer.scale, layer.offset))
        return (-offset / scale, 1 / np.abs(scale)) if np.all(scale != 0) else None
    return None


def _sources(
    tensor: keras.KerasTensor,
    input_indices: dict[int, int],
    *,
    keeping: Collection[str] | None = None,
) -> Iterator[int]:
    """Yields the indices of the model inputs from which a tensor is computed.

    `input_indices` maps the identity of an input to its index. Only operations of the classes
    `keeping` are followed; with `None` all are, except those that renumber.
    """
    visited: set[int] = set()
    waiting = [tensor]
    while waiting:
        source = waiting.pop()
        if id(source) in visited:
            continue
        visited.add(id(source))
        if id(source) in input_indices:
            yield input_indices[id(source)]
            continue
        operation, node_index, _ = source._keras_history
        kind = type(operation).__name__
        if kind in keeping if keeping is not None else not _renumbers(operation):
            waiting.extend(operation._inbound_nodes[node_index].input_tensors)

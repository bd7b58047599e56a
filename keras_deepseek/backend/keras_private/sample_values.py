"""The numbers from which samples for a preprocessing layer are drawn, such as a vocabulary."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import flatten_layers, functional_graph

RENUMBERING = (
    keras.layers.IntegerLookup,
    keras.layers.Hashing,
    keras.layers.HashedCrossing,
    keras.layers.Discretization,
    keras.layers.CategoryEncoding,
)
"""Layers that map numbers to other numbers. The size of an `Embedding` behind them does not bound
the inputs."""

_BY_TENSORFLOW = (
    keras.layers.IntegerLookup,
    keras.layers.Hashing,
    keras.layers.HashedCrossing,
)
_SHARE_UNKNOWN, _MOST_UNKNOWN = 4, 1_000
_LARGEST = np.iinfo("int64").max
_FEWEST_POSITIONS = 8


@dataclass(frozen=True)
class SampleValues:
    """The numbers from which samples for a preprocessing layer are drawn, such as a vocabulary.

    If the layer `takes_others`, some of the `numbers` are not in the vocabulary.
    """

    numbers: Array
    takes_others: bool

    def joined(self, other: "SampleValues | None") -> "SampleValues":
        """Returns the numbers that both of two layers accept, if there are any."""
        if other is None or (self.takes_others and not other.takes_others):
            return other or self
        if other.takes_others and not self.takes_others:
            return self
        if self.takes_others:
            return SampleValues(np.union1d(self.numbers, other.numbers), takes_others=True)
        both = np.intersect1d(self.numbers, other.numbers)
        return SampleValues(both, takes_others=False) if len(both) else self

    def of_dtype(self, dtype: Any, below: int | None) -> Array:
        """Returns the numbers that fit a dtype and index a table of `below` rows."""
        values = self.numbers
        if np.dtype(dtype).kind in "iu":
            limits = np.iinfo(dtype)
            values = values[(values >= limits.min) & (values <= limits.max)]
        if below is not None:
            values = values[(values >= 0) & (values < below)]
        cast = values.astype(dtype)
        return cast[cast == values] if values.dtype.kind in "iu" else np.unique(cast)


def find_sample_values(layer: keras.Layer) -> SampleValues | None:
    """Returns the sample values of a preprocessing layer, or `None`."""
    if isinstance(layer, keras.layers.IntegerLookup):
        return _of_lookup(layer)
    if isinstance(layer, keras.layers.CategoryEncoding):
        return SampleValues(np.arange(layer.num_tokens), takes_others=False)
    if isinstance(layer, keras.layers.Discretization) and layer.bin_boundaries is not None:
        return _of_bins(np.sort(np.asarray(layer.bin_boundaries, "float64").reshape(-1)))
    return None


def longest_sequence(model: keras.Layer) -> int | None:
    """Returns the most tokens that a model's positions allow, or `None` if they have no limit.

    In a layer that holds several embeddings, such as one of tokens and positions, any may be that
    of the positions, unless it gives the scores of tokens as well. The smallest counts, unless it
    has as few rows as a table of token types.

    Args:
        model: `keras.Model`, built, or a layer.
    """
    tables = [
        int(layer.weights[0].shape[0])
        for layer in flatten_layers(model)
        if type(layer).__name__ == "PositionEmbedding" and layer.weights
    ]
    for layer in flatten_layers(model):
        if type(layer).__name__ == "RotaryEmbedding":
            tables += [limit] if (limit := getattr(layer, "max_length", None)) else []
        elif functional_graph(layer) is None and not isinstance(layer, keras.layers.Embedding):
            inner = (sublayer for sublayer in flatten_layers(layer) if sublayer is not layer)
            tables += [
                sublayer.input_dim
                for sublayer in inner
                if isinstance(sublayer, keras.layers.Embedding)
                and not isinstance(sublayer, keras.layers.ReversibleEmbedding)
            ]
    return min((rows for rows in tables if rows >= _FEWEST_POSITIONS), default=None)


def layers_by_tensorflow(model: keras.Layer) -> list[str]:
    """Returns the layers in a model's graphs that need TensorFlow's tables and hashes."""
    if isinstance(model, _BY_TENSORFLOW):
        return [f"{type(model).__name__} {model.name!r}"]
    operations = getattr(functional_graph(model), "operations", ())
    layers = (operation for operation in operations if isinstance(operation, keras.Layer))
    return [name for layer in layers for name in layers_by_tensorflow(layer)]


def padding_of(layer: keras.Layer) -> float | None:
    """Returns the number that a layer treats as padding, or `None`."""
    if isinstance(layer, keras.layers.IntegerLookup):
        return None if layer.mask_token is None else int(layer.mask_token)
    if isinstance(layer, keras.layers.Masking | keras.layers.Hashing):
        value = layer.mask_value
        return None if value is None or isinstance(value, str) else float(value)
    return None


def _of_lookup(layer: Any) -> SampleValues | None:
    if layer.invert:  # An inverted lookup takes indices.
        return SampleValues(np.arange(layer.vocabulary_size()), takes_others=False)
    tokens = sorted({int(token) for token in layer.get_vocabulary(include_special_tokens=False)})
    if not tokens:
        return None
    if not layer.num_oov_indices:
        return SampleValues(np.array(tokens, "int64"), takes_others=False)
    num_unknown = min(max(1, len(tokens) // _SHARE_UNKNOWN), _MOST_UNKNOWN)
    fits = tokens[-1] <= _LARGEST - num_unknown - 1
    first = tokens[-1] + 1 if fits else tokens[0] - num_unknown - 1
    unknown = set(range(first, first + num_unknown + 1)) - {layer.mask_token}
    return SampleValues(np.array([*tokens, *sorted(unknown)], "int64"), takes_others=True)


def _of_bins(boundaries: Array) -> SampleValues | None:
    """Returns the middle of each bin, where rounding can't change the bin."""
    if not len(boundaries):
        return None
    widest = np.diff(boundaries).max(initial=0.0) or max(1.0, abs(float(boundaries[0])))
    ends = np.concatenate([[boundaries[0] - widest], boundaries, [boundaries[-1] + widest]])
    return SampleValues((ends[1:] + ends[:-1]) / 2, takes_others=True)

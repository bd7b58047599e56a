"""Decoding from a cache, whole or padded, to be compared with a call on the whole sequence."""

import functools
import itertools

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel


def decode(layer, inputs, pieces, max_length, mask=None, positions=None):
    """Returns the outputs of the pieces that begin and end at given places, one after another."""
    if not layer.built:
        layer(keras.KerasTensor(inputs.shape))
    cache, outputs = layer.make_cache(len(inputs), max_length), []
    for start, stop in itertools.pairwise(pieces):
        arguments = {"inputs": inputs, "mask": mask, "positions": positions}
        arguments = {name: x[:, start:stop] for name, x in arguments.items() if x is not None}
        # JAX would compile each operation of each piece.
        step = backend.current().compute.compile_for_one_call(
            functools.partial(_decode_piece, layer, start)
        )
        piece, cache = step(arguments, cache)
        outputs.append(keras.ops.convert_to_numpy(piece))
    return np.concatenate(outputs, axis=1)


def _decode_piece(layer, cache_index, arguments, cache):
    return layer(**arguments, cache=cache, cache_index=cache_index)


def draw_mask(batch_size, length, side, seed=0):
    """Returns a mask of sequences of different lengths, the first of them whole.

    The padding stands on the left, on the right, or anywhere.
    """
    rng = np.random.default_rng(seed)
    mask = np.ones((batch_size, length), bool)
    for row in range(1, batch_size):
        hidden = row * length // (batch_size + 1) + 1
        padding = {"left": slice(hidden), "right": slice(length - hidden, None)}
        mask[row, padding.get(side, rng.permutation(length)[:hidden])] = False
    return mask


class DecodingStep(keras.Layer):
    """A step of decoding as a layer whose tensors all are inputs, so that it can be compiled."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, token, index, **cache):
        cache = {name.removeprefix("cache_"): tensor for name, tensor in cache.items()}
        return self.layer(token, cache=cache, cache_index=index[0])[0]


def decode_compiled(layer, inputs, cache, cache_index):
    """Returns the outputs of tokens that go on from a cache, by a compiled model of one step."""
    batch = {f"cache_{name}": keras.ops.convert_to_numpy(tensor) for name, tensor in cache.items()}
    batch.update(token=inputs, index=np.full(len(inputs), cache_index, "int32"))
    symbolic = {
        name: keras.Input(array.shape[1:], dtype=array.dtype.name, name=name)
        for name, array in batch.items()
    }
    model = NamedModel(keras.Model(symbolic, DecodingStep(layer)(**symbolic)))
    (outputs,) = backend.current().inference.compile_inference(model)(batch).values()
    return outputs


def decode_last_compiled(layer, inputs, num_cached, max_length):
    """Returns the outputs of the last tokens likewise; those before them are cached eagerly."""
    cache = layer.make_cache(len(inputs), max_length)
    _, cache = layer(inputs[:, :num_cached], cache=cache, cache_index=0)
    return decode_compiled(layer, inputs[:, num_cached:], cache, num_cached)

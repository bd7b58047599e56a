"""One write index for each sequence: sequences of different lengths in one cache."""

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.attention.key_value_cache import (
    append_to_cache,
    make_attention_mask,
    make_cache,
)
from keras_deepseek.testing import assert_close
from tests.layers.attention.key_value_cache_test import WITHOUT_A_WAY_BACK, to_numpy
from tests.oracles.attention_layers import ATTENTIONS, DIM, make_attention

LENGTH = 12

CALLS = [
    # Tokens of a call; the first slot of each sequence; how many of the tokens are real.
    (4, [0, 0, 0], [4, 2, 0]),
    (1, [4, 2, 0], [1, 1, 0]),
    (3, [5, 3, 0], [0, 1, 3]),  # The third sequence joins, the first waits.
    (1, [5, 4, 3], [1, 1, 1]),
    (5, [6, 0, 4], [5, 3, 1]),  # The second sequence left; another one begins in its place.
    (1, [11, 3, 5], [1, 1, 1]),
]


def draw(batch_size, length=LENGTH):
    return np.random.default_rng(0).normal(size=(batch_size, length, DIM)).astype("float32")


def compile_call(layer):
    """Returns the layer as a function of inputs, mask, index and cache, compiled where it helps."""

    def call(inputs, mask, index, cache):
        return layer(inputs, mask=mask, cache=cache, cache_index=index)

    if keras.backend.backend() != "jax":
        return call
    return backend.current().compute.compile_for_one_call(call)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.each_backend
def test_sequences_of_different_lengths_are_as_each_alone(name):
    layer, sequences = make_attention(name), draw(4)
    alone = [keras.ops.convert_to_numpy(layer(x[None]))[0] for x in sequences]
    cache, numbers = layer.make_cache(3, LENGTH), [0, 1, 2]
    for length, starts, counts in CALLS:
        numbers[1] = 3 if length == 5 else numbers[1]
        inputs = np.full((3, length, DIM), 7, "float32")
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            inputs[row, :count] = sequences[numbers[row], start : start + count]
        mask = np.arange(length) < np.asarray(counts)[:, None]
        outputs, cache = compile_call(layer)(inputs, mask, np.asarray(starts, "int32"), cache)
        outputs = keras.ops.convert_to_numpy(outputs)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            expected = alone[numbers[row]][start : start + count]
            assert_close(outputs[row, :count], expected, 1e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_equal_numbers_are_as_one_number_to_the_bit(name):
    layer, inputs = make_attention(name), draw(2)
    caches, arguments = [layer.make_cache(2, LENGTH)] * 2, {}
    for start, stop in ((0, 4), (4, 5), (5, LENGTH)):
        if layer.rotary is not None:
            # Counted positions have another shape, for which TensorFlow rounds angles differently.
            arguments["positions"] = np.tile(np.arange(start, stop), (2, 1))
        results = [
            layer(inputs[:, start:stop], cache=cache, cache_index=index, **arguments)
            for cache, index in zip(caches, (start, np.full(2, start)), strict=True)
        ]
        caches = [cache for _, cache in results]
        outputs = [keras.ops.convert_to_numpy(output) for output, _ in results]
        np.testing.assert_array_equal(*outputs)
        for one, each in zip(*(to_numpy(cache).values() for cache in caches), strict=True):
            np.testing.assert_array_equal(one, each)
    if arguments:
        arguments["positions"] = np.tile(np.arange(LENGTH), (2, 1))
    filled = [
        layer(inputs, cache=layer.make_cache(2, LENGTH), cache_index=index, **arguments)[0]
        for index in (0, np.zeros(2, "int32"))
    ]
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, filled))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_step_writes_each_sequence_at_its_own_slot(dtype):
    def step(state, update, index):
        cache = make_cache(2, 5, {"key": (3,)}, dtype) if state is None else state
        return index + 0, append_to_cache(cache, index, {"key": update})

    compiled = backend.current().inference.compile_with_state(step, [])
    update, expected, state = np.ones((2, 2, 3), "float32"), np.zeros((2, 5)), None
    for turn, index in enumerate([[0, 0], [2, 0], [1, 3]], 1):
        _, state = compiled(state, turn * update, np.asarray(index, "int32"))
        for row, slot in enumerate(index):
            expected[row, slot : slot + 2] = turn
    cache = {name: keras.ops.convert_to_tensor(tensor) for name, tensor in state.items()}
    key = keras.ops.convert_to_numpy(keras.ops.cast(cache["key"], "float32"))
    np.testing.assert_array_equal(key, np.repeat(expected[..., None], 3, -1))
    mask = keras.ops.convert_to_numpy(cache["mask"])
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 2 + [False] + [True] * 2]


def test_the_slots_behind_each_sequence_are_hidden_by_themselves():
    cache = make_cache(2, 5, {"key": (3,)}, "float32")
    cache = append_to_cache(cache, 0, {"key": np.ones((2, 5, 3), "float32")})
    index = np.array([1, 3])
    cache = append_to_cache(cache, index, {"key": np.ones((2, 1, 3), "float32")})
    assert to_numpy(cache)["mask"].sum(axis=1).tolist() == [2, 4]
    mask = make_attention_mask(2, 4, start_index=index, use_causal_mask=True, sliding_window=2)
    assert keras.ops.convert_to_numpy(mask).astype(int).tolist() == [
        [[1, 1, 0, 0], [0, 1, 1, 0]],
        [[0, 0, 1, 1], [0, 0, 0, 1]],
    ]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_an_index_out_of_range_names_its_sequence(as_tensor):
    cache = make_cache(2, 5, {"key": (3,)}, "float32")

    def refuse(index, message):
        index = keras.ops.convert_to_tensor(index, "int32") if as_tensor else np.asarray(index)
        with pytest.raises(InvalidInputError, match=message):
            append_to_cache(cache, index, {"key": np.ones((2, 2, 3), "float32")})

    refuse([0, 4], "5 slots, received 2 tokens for the slots from 4 for sequence 1")
    refuse([-1, 0], "must be 0 or more, .* received -1")
    refuse([0, 0, 0], r"must be one integer .*, here \(2,\); received int\d+ of shape \(3,\)")


@pytest.mark.parametrize("name", WITHOUT_A_WAY_BACK)
def test_a_sequence_that_goes_back_is_refused_where_that_is_known(name):
    layer, inputs = make_attention(name), draw(2, 4)
    _, cache = layer(inputs, cache=layer.make_cache(2, 9), cache_index=0)
    message = "backwards for sequence 1: received 3, .* slot 3, .* from 4"
    with pytest.raises(InvalidInputError, match=message):
        layer(inputs, cache=cache, cache_index=np.array([4, 3]))

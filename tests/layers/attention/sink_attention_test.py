import keras
import numpy as np
import pytest

from keras_deepseek.layers.attention import sink_attention as module
from keras_deepseek.layers.attention.sink_attention import FarKeys, NearKeys, sink_attention
from keras_deepseek.testing import assert_close
from tests.oracles.precisions import PRECISIONS

SINKS = np.array([0.3, -1.0], "float32")


def draw(*shape, dtype="float32"):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def attend(query, keys, sink):
    """One query and the keys that it sees."""
    exponents = np.exp(np.append(keys @ query, sink))
    return (exponents / exponents.sum())[:-1] @ keys


def run(queries, near, far=None):
    queries = keras.ops.convert_to_tensor(queries)
    sinks = keras.ops.convert_to_tensor(SINKS)
    return keras.ops.convert_to_numpy(sink_attention(queries, near, far, sinks, lambda x: x))


def as_tensors(*arrays):
    return [keras.ops.convert_to_tensor(array) for array in arrays]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("length", "window"), [(5, 3), (21, 1), (37, 19)])
def test_a_window_reaches_over_blocks_and_recent_tokens(length, window, dtype):
    queries, keys = draw(2, length, 2, 4, dtype=dtype), draw(2, 6 + length, 4, dtype=dtype)
    num_before = np.array([[0], [9]], "int32")  # Of the nine the last six are there.
    outputs = run(queries, NearKeys(*as_tensors(keys, num_before), window))
    expected = np.zeros_like(queries)
    for row, recent in enumerate((0, 6)):
        for t in range(length):
            visible_keys = keys[row, max(6 - recent, 7 + t - window) : 7 + t]
            for head in range(2):
                expected[row, t, head] = attend(queries[row, t, head], visible_keys, SINKS[head])
    assert outputs.dtype == dtype
    assert_close(outputs, expected, dtype)


def test_entries_are_seen_in_one_softmax_with_the_window():
    queries, keys, entries = draw(1, 4, 2, 4), draw(1, 4, 4), draw(1, 3, 4)
    counts = np.array([[0, 1, 2, 3]], "int32")
    chosen = np.array([[[0, 1], [1, 0], [2, 0], [2, 1]]], "int32")
    near = NearKeys(*as_tensors(keys, np.zeros((1, 1), "int32")), 2)
    for choice in (None, chosen):
        far = FarKeys(
            *as_tensors(entries, counts), None if choice is None else as_tensors(choice)[0]
        )
        outputs = run(queries, near, far)
        for t in range(4):
            numbers = range(3) if choice is None else choice[0, t]
            numbers = [number for number in numbers if number < counts[0, t]]
            visible_keys = np.concatenate([keys[0, max(0, t - 1) : t + 1], entries[0, numbers]])
            for head in range(2):
                expected = attend(queries[0, t, head], visible_keys, SINKS[head])
                assert_close(outputs[0, t, head], expected)


def test_a_query_that_sees_nothing_gets_zeros():
    near = NearKeys(*as_tensors(draw(1, 3, 4), np.full((1, 1), -3, "int32")), 2)
    assert not run(draw(1, 3, 2, 4), near).any()


@pytest.mark.parametrize(("most_parts", "num_parts"), [(16, 3), (2, 2)])
def test_chosen_entries_are_gathered_in_parts(monkeypatch, most_parts, num_parts):
    queries, entries, zero = draw(1, 40, 2, 4), draw(1, 9, 4), np.zeros((1, 1), "int32")
    near = NearKeys(*as_tensors(draw(1, 40, 4), zero), 3)
    counts = np.arange(40, dtype="int32")[None] // 4
    chosen = np.random.default_rng(0).permuted(np.tile(np.arange(9), (1, 40, 1)), axis=2)[..., :5]
    far = FarKeys(*as_tensors(entries, counts, chosen.astype("int32")))
    whole, calls, take = run(queries, near, far), [], module.take_rows
    monkeypatch.setattr(module, "_MOST_GATHERED", 1)
    monkeypatch.setattr(module, "_MOST_PARTS", most_parts)
    monkeypatch.setattr(module, "take_rows", lambda *args: calls.append(args) or take(*args))
    assert_close(run(queries, near, far), whole)
    assert len(calls) == num_parts

import random
import sys
import types

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.packed_state import pack_state, unpack_state
from keras_deepseek.backend import current
from keras_deepseek.backend.data.random_state import (
    read_random_state,
    seed_generators,
    write_random_state,
)


def draw():
    """Returns numbers of each generator that the process shares."""
    numbers = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]  # noqa: NPY002
    numbers += keras.ops.convert_to_numpy(keras.random.uniform((2,))).tolist()
    return numbers + draw_of_the_framework()


def draw_of_the_framework():
    if keras.backend.backend() == "torch":
        import torch

        return torch.rand(3).tolist()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.random.get_global_generator().normal((3,)).numpy().tolist()
    return []


def test_the_generators_go_on_from_where_they_were_read():
    draw()  # Also leaves the second number of a pair waiting in Python's and NumPy's `gauss`.
    state = read_random_state()
    packed, arrays = pack_state(state)
    expected = draw()
    assert draw() != expected
    write_random_state(unpack_state(packed, arrays))
    assert draw() == expected


def test_reading_changes_nothing():
    draw()
    write_random_state(read_random_state())
    state = read_random_state()
    first = draw()
    write_random_state(state)
    read_random_state()
    assert draw() == first


def test_a_state_is_a_copy():
    state = read_random_state()
    values, _ = pack_state(state)
    arrays = [array.copy() for array in pack_state(state)[1]]
    draw()
    assert pack_state(state)[0] == values
    for array, other in zip(pack_state(state)[1], arrays, strict=True):
        np.testing.assert_array_equal(array, other)


def test_the_framework_has_states_of_arrays():
    state = current().step.read_framework_random_state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    current().step.write_framework_random_state(state)


def test_all_are_seeded():
    def draw_seeded():
        numbers = draw()  # Keras leaves TensorFlow's own shared generator alone.
        return numbers[:6] if keras.backend.backend() == "tensorflow" else numbers

    seed_generators(3)
    first = draw_seeded()
    assert draw_seeded() != first
    seed_generators(3)
    assert draw_seeded() == first


def test_seeds_are_drawn_by_what_the_framework_s_users_seed():
    drawn = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(seed)
        drawn.append([current().step.draw_seed() for _ in range(2)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 2
    assert all(0 <= seed < 2**31 for seed in drawn[0])


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="The test above has it.")
def test_pytorch_is_seeded_where_its_data_are_read_by_another_framework(monkeypatch):
    seeds = []
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(manual_seed=seeds.append))
    seed_generators(3)
    assert seeds == [3]


def test_a_missing_generator_need_not_be_created():
    seed_generators(5)
    expected = random.random()
    seed_generators(5)
    state = read_random_state(makes_missing=False)
    assert state["keras"] is None
    assert random.random() == expected
    draw()
    write_random_state(state)
    assert random.random() == expected
    first = keras.ops.convert_to_numpy(keras.random.uniform((2,)))
    seed_generators(5)
    assert random.random() == expected
    assert (keras.ops.convert_to_numpy(keras.random.uniform((2,))) == first).all()

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_entry import (
    copied_entry,
    kernel_entry,
    rename_tensors,
    reshaped_entry,
    split_kernel_entry,
    stacked_entry,
)


def variable(*shape):
    return keras.Variable(np.random.default_rng(0).normal(size=shape).astype("float32"))


def values(entry):
    return [keras.ops.convert_to_numpy(entry_variable.value) for entry_variable in entry.variables]


ENTRIES = {
    "copied": lambda: copied_entry(variable(5, 3), "t"),
    "reshaped": lambda: reshaped_entry(variable(2, 3), "t", (6,)),
    "dense": lambda: kernel_entry(variable(4, 6), "t"),
    "to heads": lambda: kernel_entry(variable(4, 3, 2), "t"),
    "from heads": lambda: kernel_entry(variable(3, 2, 5), "t", num_input_axes=2),
    "split": lambda: split_kernel_entry((variable(4, 3), variable(4, 2)), "t"),
    "split in heads": lambda: split_kernel_entry((variable(4, 2, 3), variable(4, 2, 5)), "t"),
    "stacked": lambda: stacked_entry(variable(3, 4, 2), ("a", "b", "c")),
    "stacked as they are": lambda: stacked_entry(variable(2, 4), ("a", "b"), are_kernels=False),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_the_way_there_and_back_changes_nothing(name):
    entry = ENTRIES[name]()
    tensors = entry.to_tensors(values(entry))
    assert [tensor.shape for tensor in tensors] == entry.tensor_shapes()
    assert len(tensors) == len(entry.tensors)
    back = entry.to_variables(tensors)
    for array, expected in zip(back, values(entry), strict=True):
        assert np.array_equal(np.asarray(array), expected)


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_read_are_views(name):
    entry = ENTRIES[name]()
    tensors = [np.ascontiguousarray(tensor) for tensor in entry.to_tensors(values(entry))]
    for array in entry.to_variables(tensors):
        parts = getattr(array, "arrays", [array])
        assert all(any(np.shares_memory(part, tensor) for tensor in tensors) for part in parts)


def test_a_kernel_to_heads_is_a_linear_of_one_head_after_the_other():
    entry = kernel_entry(variable(4, 3, 2), "t")
    (linear,) = entry.to_tensors(values(entry))
    x = np.random.default_rng(1).normal(size=4)
    heads = np.einsum("d,dhn->hn", x, values(entry)[0])
    assert np.allclose((linear @ x).reshape(3, 2), heads)


def test_a_kernel_from_heads_is_a_linear_too():
    entry = kernel_entry(variable(3, 2, 5), "t", num_input_axes=2)
    (linear,) = entry.to_tensors(values(entry))
    x = np.random.default_rng(1).normal(size=(3, 2))
    assert np.allclose(linear @ x.ravel(), np.einsum("hn,hno->o", x, values(entry)[0]))


def test_keys_and_values_of_a_head_lie_beside_each_other():
    entry = split_kernel_entry((variable(4, 2, 3), variable(4, 2, 5)), "kv_b_proj.weight")
    (linear,) = entry.to_tensors(values(entry))
    x = np.random.default_rng(1).normal(size=4)
    key, value = np.split((linear @ x).reshape(2, 3 + 5), [3], axis=-1)
    assert np.allclose(key, np.einsum("d,dhn->hn", x, values(entry)[0]))
    assert np.allclose(value, np.einsum("d,dhn->hn", x, values(entry)[1]))


def test_the_shapes_of_large_tensors_take_no_memory():
    entry = stacked_entry(variable(2, 3, 4), ("a", "b"))
    object.__setattr__(entry, "variables", (type("Large", (), {"shape": (2, 10**9, 10**9)})(),))
    assert entry.tensor_shapes() == [(10**9, 10**9)] * 2


def test_entries_take_the_spelling_that_a_checkpoint_has():
    entries = [copied_entry(variable(2), name) for name in ("a", "b", "c")]
    present = {"a", "old.a", "old.b"}
    spelled = rename_tensors(entries, present, lambda name: (name, f"old.{name}"))
    assert [entry.tensors for entry in spelled] == [("a",), ("old.b",), ("c",)]
    assert [entry.variables for entry in spelled] == [entry.variables for entry in entries]


def test_a_sum_in_place_of_a_variable_is_told():
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    dense.enable_lora(1)
    with pytest.raises(InvalidInputError, match=r"'a' must hold a variable.*own_variable"):
        kernel_entry(dense.kernel, "a")

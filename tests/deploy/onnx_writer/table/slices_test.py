"""Keys, slices, updates and splits, written as ONNX, compute what Keras computes."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import as_layer, check_operation

X = np.arange(60, dtype="float32").reshape(3, 4, 5)
ROWS = np.arange(12, dtype="int32").reshape(3, 4)
EMPTY = np.zeros((3, 0, 5), "float32")
HAS_NEGATIVE_STEPS = keras.backend.backend() != "torch"

KEYS = {
    "an integer": np.s_[:, 1],
    "a negative integer": np.s_[:, -1],
    "two integers": np.s_[:, 1, -2],
    "integers around a slice": np.s_[1:, 2, 1:3],
    "an ellipsis": np.s_[..., 1],
    "an ellipsis in the middle": np.s_[:, ..., 1:2],
    "an ellipsis for no axis": np.s_[:, 1, ..., 2:],
    "an ellipsis alone": np.s_[...,],
    "new axes": np.s_[None, :, None, 1, ..., None],
    "new axes after an integer": np.s_[:, 1, None, None],
    "nothing": np.s_[:, :],
    "a stop beyond the end": np.s_[:, 1:99],
    "a start beyond the end": np.s_[:, 99:],
    "a start before the beginning": np.s_[:, -99:2],
    "a stop before the beginning": np.s_[:, :-99],
    "a stop before the start": np.s_[:, 3:1],
    "steps": np.s_[:, ::2, 1::3],
    "steps beyond the end": np.s_[:, ::9],
    "the last ones": np.s_[:, -2:],
    "all but the last": np.s_[:, :-1, :-2],
}
BACKWARDS = {
    "all": np.s_[:, ::-1],
    "from the middle": np.s_[:, 2::-1],
    "to the middle": np.s_[:, :1:-1],
    "to the last": np.s_[:, :-1:-1],
    "from the last": np.s_[:, -1::-2],
    "between": np.s_[:, 3:0:-2],
    "from beyond the end": np.s_[:, 99::-3],
    "from before the beginning": np.s_[:, -99::-1],
    "to before the beginning": np.s_[:, :-99:-1],
    "from and to negative numbers": np.s_[:, -2:-4:-1],
    "forwards and backwards": np.s_[:, 1:, ::-2],
}
if HAS_NEGATIVE_STEPS:
    KEYS |= {f"backwards, {case}": key for case, key in BACKWARDS.items()}


@pytest.mark.parametrize("case", KEYS)
def test_a_key_takes_what_keras_takes(case):
    check_operation(lambda x: x[KEYS[case]], X)


@pytest.mark.parametrize(
    "key",
    [
        np.s_[:, 1:-1],
        np.s_[:, 4:],
        np.s_[:, :5],
        np.s_[:, -4:],
        np.s_[:, :-4],
        np.s_[:, ::3],
        np.s_[:, -1],
        np.s_[:, None, 1],
        *(
            [np.s_[:, ::-1], np.s_[:, -4::-1], np.s_[:, 4:1:-2], np.s_[:, 4:-9:-1]]
            if HAS_NEGATIVE_STEPS
            else []
        ),
    ],
    ids=str,
)
def test_a_key_cuts_a_free_axis_of_any_size(key):
    check_operation(lambda x: x[key], np.resize(X, (3, 7, 5)), free_axes=[1])


def test_a_slice_between_sizes_is_cut_at_every_size():
    def function(x):
        length = ops.shape(x)[1]
        return x[:, length // 2 : length - 1]

    check_operation(as_layer(function), np.resize(X, (3, 12, 5)), free_axes=[1])


@pytest.mark.parametrize("key", [True, np.array([True, False, True]), np.array([0, 2])], ids=str)
def test_a_mask_or_an_array_as_key_is_refused(key):
    with pytest.raises((NoEntryError, ValueError, TypeError)):
        check_operation(lambda x: x[:, key], X)


SLICES = {
    "from numbers": lambda x, at: ops.slice(x, (0, 1, 2), (ops.shape(x)[0], 2, 3)),
    "of whole axes": lambda x, at: ops.slice(x, (0, 0, 0), ops.shape(x)),
    "from tensors": lambda x, at: ops.slice(x, [0, at[0, 0], at[0, 1]], (ops.shape(x)[0], 2, 3)),
    "from one tensor": lambda x, at: ops.slice(x, at[0], (1, 2, 3)),
}
UPDATES = {
    "at numbers": lambda x, at: ops.slice_update(x, (0, 1, 2), -x[:, :2, :3]),
    "of whole axes": lambda x, at: ops.slice_update(x, (0, 0, 0), -x),
    "at the beginning": lambda x, at: ops.slice_update(x, (0, 0, 0), -x[:, :2]),
    "at tensors": lambda x, at: ops.slice_update(x, [0, at[0, 0], at[0, 1]], -x[:, :2, :3]),
    "at one tensor": lambda x, at: ops.slice_update(x, at[0], -x[:, :1, :2]),
}
STARTS = np.array([[0, 1, 2]] * 3, "int32")


@pytest.mark.parametrize("case", SLICES)
def test_a_slice_begins_where_it_is_told_to(case):
    check_operation(as_layer(SLICES[case]), X, STARTS)


@pytest.mark.parametrize("case", UPDATES)
def test_an_update_replaces_a_part(case):
    check_operation(as_layer(UPDATES[case]), X, STARTS)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="others raise an error, or clip at 0")
@pytest.mark.parametrize("start", [-1, -9, 3, 99])
def test_a_part_outside_of_a_tensor_is_moved_into_it_as_on_jax(start):
    at = np.full((3, 3), start, "int32")
    check_operation(SLICES["from one tensor"], X, at)
    check_operation(UPDATES["at one tensor"], X, at)


SPLITS = {
    "in equal parts": lambda x: ops.split(x, 2, 1),
    "in one part": lambda x: ops.split(x, 1, 1),
    "at numbers": lambda x: ops.split(x, (1, 3), -1),
    "at the ends": lambda x: ops.split(x, (0, 5), -1),
    "in unequal parts": lambda x: ops.array_split(x, 3, -1),
    "in more parts than elements": lambda x: ops.array_split(x, 7, 1),
    "unstacked": lambda x: ops.unstack(x, axis=1),
    "unstacked in one": lambda x: ops.unstack(x[:, :1], axis=1),
    "hsplit": lambda x: ops.hsplit(x, 2),
    "vsplit": lambda x: ops.vsplit(ops.reshape(x, (4, -1)), 2),
    "dsplit": lambda x: ops.dsplit(x, (2,)),
}


@pytest.mark.parametrize("case", SPLITS)
def test_a_tensor_splits_as_in_keras(case):
    check_operation(SPLITS[case], X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.split(ops.concatenate([x, x, x], 1), 3, 1),
        lambda x: ops.split(x, (1, 2), 1),
        lambda x: ops.array_split(x, 1, 1),
    ],
    ids=["in equal parts", "at numbers", "in one part"],
)
def test_a_free_axis_splits_at_every_size(function):
    check_operation(function, np.resize(X, (3, 12, 5)), free_axes=[1], lengths=(3, 9))


@pytest.mark.parametrize("array", [EMPTY, ROWS[:, :0, None]], ids=["of one", "of none"])
def test_an_empty_axis_is_cut(array):
    check_operation(lambda x: (x[:, 1:], x[:, ::2], ops.split(x, 2, 1)), array)

"""Sorting and indices in an ONNX file compute what Keras does, of ties and NaN too."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.graph.size_expressions import OneSizeError
from keras_deepseek.layers.opaque_operation import call_opaque
from tests.oracles.operation_case import check_operation

INF, NAN = np.inf, np.nan
X = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32")
TIES = np.array([[1, 1, 2, 2], [0, 0, 0, 0], [3, 1, 3, 1]], "float32")
LARGE = np.array([[2**31 - 1, -7, 2**30], [3, -(2**31), 3]], "int32")
BYTES = np.array([[255, 200, 3], [1, 2, 2]], "uint8")
BOOLS = np.array([[True, False], [False, False]])
INDICES = np.array([[0, -1, 2], [1, 4, -5]], "int32")
ROWS = np.arange(10, dtype="float32").reshape(2, 5)
SCATTERED = np.array([[0], [2], [0]], "int32")
EDGES = np.array([0, 1, 1, 2, 3], "float32")
BETWEEN = np.array([1, 0.5, -1, 9, NAN, INF, -INF, 3], "float32")


def as_int32(structure):
    """Casts the int64 of PyTorch, where Keras says int32."""
    return [
        ops.cast(x, "int32") if "int" in str(x.dtype) else x for x in keras.tree.flatten(structure)
    ]


CASES = {
    "argmax": (lambda x: [ops.argmax(x, axis=1), ops.argmin(x, axis=-1, keepdims=True)], X),
    "argmax of all": (lambda x: [ops.argmax(x), ops.argmin(x)], X),
    "argmax of bools and bytes": (
        lambda x, y: [ops.argmax(x, axis=1), ops.argmin(y, axis=1)],
        BOOLS,
        BYTES,
    ),
    "argmax of ties": (lambda x: [ops.argmax(x, axis=1), ops.argmin(x, axis=1)], TIES),
    "argsort of ties": (lambda x: ops.argsort(x, axis=1), TIES),
    "digitize": (lambda x: ops.digitize(x, EDGES), BETWEEN),
    "in_top_k": (lambda x, y: ops.in_top_k(x, y, 2), np.array([0, 1, 3], "int32"), X[:, 0, :4]),
    "one_hot": (
        lambda x: [ops.one_hot(x, 5), ops.one_hot(x, 3, axis=1, dtype="int32")],
        np.array([[0, 1, 2], [1, -1, 0]], "int32"),
    ),
    "one_hot of bytes": (lambda x: ops.one_hot(x, 3), np.array([[0, 1, 2]], "uint8")),
    "scatter": (
        lambda x: ops.scatter(SCATTERED, ops.multiply(ops.max(x), ROWS[:1, :3].T), (5, 1)),
        X,
    ),
    "searchsorted right": (lambda x: ops.searchsorted(EDGES, x, side="right"), BETWEEN),
    "segment_sum, some of no segment": (
        lambda x, y: ops.segment_sum(x, y, num_segments=3),
        X[:, 0],
        np.array([2, -1, 0], "int32"),
    ),
    "sort": (lambda x: [ops.sort(x, axis=1), ops.sort(x), ops.sort(x, axis=None)], X),
    "sort of bools and bytes": (lambda x, y: [ops.sort(x), ops.sort(y, axis=1)], BOOLS, BYTES),
    "sort of integers": (lambda x: [ops.sort(x), ops.argsort(x)], LARGE),
    "take": (lambda x: [ops.take(x, [[1, -1], [0, 2]], axis=1), ops.take(x, 1, axis=2)], X),
    "take by a tensor": (lambda x, y: ops.take(x, y, axis=1), ROWS, INDICES),
    "take by small integers": (
        lambda x, y: ops.take(x, y, axis=1),
        ROWS,
        np.array([[0, 3]], "int16"),
    ),
    "take of all": (lambda x: ops.take(x, [0, 3]), X),
    "take_along_axis": (lambda x, y: ops.take_along_axis(x, y, axis=1), ROWS, INDICES),
    "take_along_axis that broadcasts indices": (
        lambda x, y: ops.take_along_axis(x, ops.expand_dims(y, -1), axis=1),
        X[:2],
        np.array([[0, -1], [3, 2]], "int32"),
    ),
    "take_along_axis that broadcasts numbers": (
        lambda x, y: ops.take_along_axis(x[:, :, :1], ops.stack([y, y], -1), axis=1),
        X[:2],
        np.array([[0, -1], [3, 2]], "int32"),
    ),
    "top_k": (lambda x: ops.top_k(x, 3), X),
    "top_k of the framework": (
        lambda x: call_opaque(functools.partial(current().compute.top_k, k=3), x),
        X,
    ),
    "top_k of integers": (lambda x, y: [*ops.top_k(x, 2), *ops.top_k(y, 1)], LARGE[:, :2], BYTES),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operation(case):
    function, *arrays = CASES[case]
    check_operation(lambda *tensors: as_int32(function(*tensors)), *arrays)


@pytest.mark.parametrize("reduction", [None, "add", "max", "min", "mul"])
def test_scatter_update(reduction):
    indices = np.array([[0, 1], [2, 0], [0, 1] if reduction else [1, 2]], "int32")

    def update(x):
        number = ops.max(x)
        inputs = ops.multiply(number, np.ones((4, 3), str(x.dtype)))
        updates = ops.multiply(number, np.array([2, 3, 4], str(x.dtype)))
        return ops.scatter_update(inputs, indices, updates, reduction=reduction)

    check_operation(lambda *tensors: [update(x) for x in tensors], X[:, 0], BYTES)


def _first_indices(x):
    indices = np.argsort(-x, axis=1, kind="stable")[:, :3]
    return [np.take_along_axis(x, indices, 1), indices.astype("int32")]


def _segments(reduce, empty):
    def reference(x, ids):
        rows = [x[ids == segment] for segment in range(3)]
        results = [reduce(r, 0) if len(r) else np.full(3, empty) for r in rows]
        return np.stack(results).astype(x.dtype)

    return reference


IDS = np.array([0, 2, 0], "int32")
INTEGERS = np.array([[5, -7, 2**30 + 1], [3, -(2**31), 3], [9, 9, 2**24 + 1]], "int32")

REFERENCES = {
    # TensorFlow does not find NaN.
    "argmax of NaN": (
        lambda x: [ops.argmax(x, axis=1), ops.argmin(x, axis=1)],
        lambda x: [np.argmax(x, 1).astype("int32"), np.argmin(x, 1).astype("int32")],
        np.array([[1, NAN, 3, -2], [NAN, 4, 5, NAN]], "float32"),
    ),
    # TensorFlow has NaN before all.
    "searchsorted left": (
        lambda x: ops.searchsorted(EDGES, x),
        lambda x: np.searchsorted(EDGES, x).astype("int32"),
        BETWEEN,
    ),
    # TensorFlow has row 4 of number 19.
    "unravel_index": (
        lambda x: ops.unravel_index(x, (4, 5)),
        lambda x: [index.astype("int32") for index in np.unravel_index(x, (4, 5))],
        np.array([[3, 19, 7]], "int32"),
    ),
    # PyTorch has an order of its own among equal numbers.
    "top_k of ties": (lambda x: ops.top_k(x, 3), _first_indices, TIES),
    # JAX has no int64, and no classes of floats.
    "argmax of int64": (
        lambda x: [
            ops.argmax(ops.cast(x, "int64"), axis=1),
            ops.argmin(ops.cast(x, "int64"), axis=1, keepdims=True),
        ],
        lambda x: [np.argmax(x, 1).astype("int32"), np.argmin(x, 1)[:, None].astype("int32")],
        LARGE,
    ),
    "one_hot of floats": (
        lambda x: ops.one_hot(x, 3),
        lambda x: np.eye(3, dtype="float32")[x.astype("int32")],
        np.array([[0, 1.7, 2]], "float32"),
    ),
    # PyTorch raises at a class that is none.
    "one_hot of other numbers": (
        lambda x: ops.one_hot(x, 3),
        lambda x: (x[..., None] == np.arange(3)).astype("float32"),
        np.array([[0, 1, 5], [1, -1, 0]], "int32"),
    ),
    # PyTorch takes a negative index of all for one of the first axis.
    "take of all from the end": (lambda x: ops.take(x, [0, -1]), lambda x: np.take(x, [0, -1]), X),
    # PyTorch computes segments in float32, and TensorFlow has the lowest number for an empty one.
    "segment_sum of integers": (
        lambda x, y: ops.segment_sum(x, y, num_segments=3),
        _segments(np.sum, 0),
        INTEGERS,
        IDS,
    ),
    "segment_max of integers": (
        lambda x, y: ops.segment_max(x, y, num_segments=3),
        _segments(np.max, -(2**31)),
        INTEGERS,
        IDS,
    ),
    "segment_prod of integers": (
        lambda x, y: ops.segment_prod(x, y, num_segments=3),
        _segments(np.prod, 1),
        INTEGERS,
        IDS,
    ),
    "segment_min of floats": (
        lambda x, y: ops.segment_min(x, y, num_segments=3),
        _segments(np.min, INF),
        X[:, 0, :3],
        IDS,
    ),
    "segment_max of floats": (
        lambda x, y: ops.segment_max(x, y, num_segments=3),
        _segments(np.max, -INF),
        X[:, 0, :3],
        IDS,
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_operation_follows_numpy(case):
    function, reference, *arrays = REFERENCES[case]
    check_operation(function, *arrays, reference=reference)


def test_sort_of_a_free_length():
    check_operation(lambda x: [ops.sort(x), ops.argsort(x)], X[0], free_axes=[1])


def test_an_index_beyond_the_size_raises_when_the_file_runs():
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    with pytest.raises(InvalidArgument, match="out of"):
        check_operation(
            lambda x, y: ops.take(x, y, axis=1), ROWS, INDICES * 9, reference=lambda x, y: x
        )


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX needs the number of segments")
def test_shapes_that_depend_on_the_data_are_refused():
    with pytest.raises(OneSizeError, match="depends on the data"):
        check_operation(ops.segment_sum, X[:, 0], IDS)

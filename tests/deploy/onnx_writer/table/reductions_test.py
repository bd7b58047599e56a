"""Reductions and running sums in an ONNX file compute what Keras does, of integers and NaN too."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import check_operation

INF, NAN = np.inf, np.nan
X = (1 + np.random.default_rng(0).normal(size=(3, 4, 5)) / 2).astype("float32")
SPECIAL = np.array([[1, NAN, 3, INF], [NAN] * 4, [-INF, 2, 2, 1], [-INF] * 4], "float32")
LARGE = np.array([[2**31 - 5] * 6, [3, -7, 5, 2**30, 7, -(2**31)], [1, 2, 3, 4, 5, 6]], "int32")
SMALL = np.array([[127, 100, 3], [-128, -100, 2]], "int8")
BYTES = np.array([[255, 200, 3], [1, 2, 0]], "uint8")
BOOLS = np.array([[True, False], [False, False], [True, True]])

REDUCTIONS = (
    "all", "amax", "amin", "any", "logsumexp", "max", "mean", "min", "nanmax", "nanmean", "nanmin",
    "nanprod", "nansum", "prod", "ptp", "std", "sum", "var",
)  # fmt: skip
OF_INTEGERS = ("all", "any", "max", "mean", "min", "nansum", "prod", "std", "sum")


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name):
    reduce = getattr(ops, name)

    def function(x, special):
        return [
            reduce(x, axis=1),
            reduce(x, axis=(1, 2)),
            reduce(x, axis=-1, keepdims=True),
            reduce(special, axis=1),
            reduce(x),
        ]

    check_operation(function, X, SPECIAL)


@pytest.mark.parametrize("name", OF_INTEGERS)
def test_reduction_of_integers(name):
    reduce = getattr(ops, name)

    def function(*tensors):
        return [reduce(x, axis=1) for x in tensors]

    check_operation(function, LARGE, SMALL, BYTES, BOOLS)


def count(x):
    return ops.cast(ops.count_nonzero(x, axis=1), "int32")  # PyTorch has int64.


CASES = {
    "all of no numbers": (lambda x: ops.all(x[:, :0] > 0, axis=1), X),
    "any of no numbers": (lambda x: ops.any(x[:, :0] > 0, axis=1), X),
    "average": (lambda x: [ops.average(x, axis=1), ops.average(x)], X),
    "average by weights": (lambda x: ops.average(x, axis=1, weights=X[0, 0, :4]), X[:, :, 0]),
    "count_nonzero": (count, np.array([[0.0, 1.0, NAN], [0.0, -0.0, 0.0]], "float32")),
    "cumprod": (lambda x: [ops.cumprod(x, axis=1), ops.cumprod(x, axis=-1)], X),
    "cumprod of all": (ops.cumprod, X[:, 0, :2]),
    "cumsum": (lambda x: [ops.cumsum(x, axis=1), ops.cumsum(x, axis=-1), ops.cumsum(x)], X),
    "cumsum of NaN": (lambda x: ops.cumsum(x, axis=1), SPECIAL),
    "diff": (lambda x: [ops.diff(x, axis=1), ops.diff(x, n=2)], X),
    "max from a number": (lambda x: ops.max(x, axis=1, initial=0.5), X),
    "min from a number": (lambda x: ops.min(x, axis=1, initial=-0.5), X),
    "moments": (lambda x: ops.moments(x, axes=[1]), X),
    "moments that keep axes": (lambda x: ops.moments(x, axes=[1, 2], keepdims=True), X),
    "normalize": (lambda x: [ops.normalize(x, axis=1), ops.normalize(x * 0)], X),
    "prod of all": (ops.prod, LARGE),
    "prod of integers over axes": (
        lambda x: [ops.prod(x, axis=(1, 2), keepdims=True), ops.prod(x, axis=(0, 2))],
        np.full((2, 3, 4), 77, "int32"),
    ),
    "sum and prod of no numbers": (
        lambda x: [ops.sum(x[:, :0], axis=1), ops.prod(x[:, :0], axis=1)],
        X,
    ),
    "sum over no axes": (lambda x: ops.sum(x, axis=()), X),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*The use of `x.T`:UserWarning")  # Of Keras on PyTorch.
@pytest.mark.parametrize("case", CASES)
def test_operation(case):
    check_operation(*CASES[case])


@pytest.mark.parametrize("name", ["cumprod", "cumsum"])
def test_running_integers_wrap_around(name):
    accumulate = getattr(ops, name)
    check_operation(
        lambda *tensors: [accumulate(x, axis=1) for x in tensors], LARGE, SMALL, BYTES, BOOLS
    )


@pytest.mark.parametrize("name", ["nancumprod", "nancumsum"])
def test_running_numbers_without_nan_follow_numpy(name):
    # On PyTorch, Keras replaces infinity as well.
    def reference(x):
        with np.errstate(invalid="ignore"):
            return getattr(np, name)(x, axis=1)

    check_operation(lambda x: getattr(ops, name)(x, axis=1), SPECIAL, reference=reference)


def test_half_precision():
    half = X.astype("float16")

    def function(x):
        return ops.var(x, axis=1), ops.mean(x, axis=1), ops.sum(x, axis=1), ops.max(x, axis=1)

    check_operation(function, half, tolerance=2e-3)


def test_a_mean_over_an_image_needs_no_transposition():
    layer = keras.layers.Conv2D(4, 3)
    image = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
    proto = check_operation(lambda x: ops.mean(layer(x), axis=(1, 2)), image)
    assert [node.op_type for node in proto.graph.node] == ["Transpose", "Conv", "ReduceMean"]


def test_a_product_of_integers_with_channels_first():
    layer = keras.layers.Conv2D(4, 3, dtype="float32")
    image = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")

    def function(x):
        y = ops.cast(ops.round(layer(x) * 3), "int32")
        return ops.prod(y, axis=(1, 3), keepdims=True), ops.prod(y, axis=(1, 2))

    check_operation(function, image)


def test_a_product_of_a_free_length_is_scanned():
    numbers = np.arange(1, 21, dtype="int32").reshape(2, 10)
    check_operation(lambda x: ops.prod(x, axis=1), numbers, free_axes=[1])


@pytest.mark.parametrize(
    "function", [lambda x: ops.normalize(x, order=3), lambda x: ops.diff(x > 0, axis=1)]
)
def test_reductions_without_a_right_form_are_refused(function):
    with pytest.raises(NoEntryError):
        check_operation(function, X)

"""The formulas, run one operator after another; in a model they are tested with the export."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("They are PyTorch's.", allow_module_level=True)

from keras_deepseek.backend.torch.export import (
    expm1,
    log1p,
    log_sigmoid,
    logaddexp,
    logaddexp2,
    squeeze,
)

NUMBERS = np.array([1e-30, 1e-7, 1e-3, 0.3, 0.499, 0.5, 0.7, 3.0, 17.0, 80.0], "float32")
SIGNED = np.concatenate([NUMBERS, -NUMBERS, [0.0]]).astype("float32")


@pytest.fixture(autouse=True)
def run_at_once():
    """Each operator of onnxscript runs by onnxruntime where it is given arrays."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")


def given(array):
    import onnxscript

    return onnxscript.tensor.Tensor(array)


@pytest.mark.parametrize(
    ("formula", "x", "oracle"),
    [
        (expm1, SIGNED, np.expm1),
        (log1p, SIGNED[SIGNED > -1], np.log1p),
        (log_sigmoid, SIGNED, lambda x: -np.logaddexp(0, -x)),
    ],
)
def test_of_one(formula, x, oracle):
    received = formula(given(x)).value
    np.testing.assert_allclose(received, oracle(x.astype("float64")), rtol=1e-6)


@pytest.mark.parametrize(
    ("formula", "oracle"), [(logaddexp, np.logaddexp), (logaddexp2, np.logaddexp2)]
)
def test_of_two(formula, oracle):
    x, y = (grid.ravel() for grid in np.meshgrid(SIGNED, SIGNED * np.float32(3)))
    received = formula(given(x), given(y)).value
    expected = oracle(x.astype("float64"), y.astype("float64"))
    np.testing.assert_allclose(received, expected, rtol=1e-6, atol=1e-7)


def test_an_axis_that_is_not_of_one_stays():
    x = given(np.ones((1, 3, 1), "float32"))
    assert squeeze(x, 1).shape == (1, 3, 1)
    assert squeeze(x, [0, 1]).shape == (3, 1)

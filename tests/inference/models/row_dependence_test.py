import numpy as np
import pytest

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.models.warm_up import find_row_dependence


class Rows:
    """Computes by a function of its one input."""

    def __init__(self, compute, dtype="float32", shape=(None, 2)):
        self.compute = compute
        self.signature = Signature(
            (TensorSpec("x", shape, dtype),), (TensorSpec("y", (None,), "float32"),)
        )

    def run(self, inputs):
        return {"y": np.asarray(self.compute(inputs["x"]), "float32")}


@pytest.mark.parametrize(
    ("compute", "dtype", "match"),
    [
        (lambda x: x.sum(1) + x.mean(), "float32", "changes with the other rows"),
        (lambda x: np.tensordot(x, x, 2) * np.ones(len(x)), "int32", "changes with the other rows"),
        (lambda x: (x / np.abs(x).max()).sum(1), "float32", "changes with the other rows"),
        (lambda x: (x + x[:1]).sum(1), "float32", "changes with the other rows"),
        (lambda x: np.cumsum(x, 0).sum(1), "float32", "changes with the other rows"),
        (lambda x: x.sum(1) * len(x), "float32", "changes with the batch size"),
    ],
)
def test_rows_that_depend_on_each_other_are_found(compute, dtype, match):
    assert match in find_row_dependence(Rows(compute, dtype), (1, 4), 1)
    assert find_row_dependence(Rows(compute, dtype), (1,), 1) is None


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.sum(1),
        lambda x: np.where(x.sum(1) > 1, x.sum(1), np.nan),
        lambda x: np.where(x.sum(1) > 1, x.sum(1), -np.inf),
        lambda x: np.random.default_rng().normal(size=len(x)),
        lambda x: x.sum(1) * (1 + 0.004 * (len(x) == 1)),  # As bfloat16 may round.
    ],
)
def test_rows_that_do_not_are_not_held_for_that(compute):
    assert find_row_dependence(Rows(compute), (1, 4), 1) is None


def test_outputs_that_are_strings_are_compared_as_they_are():
    class Labels(Rows):
        signature = Signature(
            (TensorSpec("x", (None, 2), "float32"),), (TensorSpec("y", (None,), "object"),)
        )

        def __init__(self, compute):
            self.compute = compute

        def run(self, inputs):
            labels = [b"large" if number > 1 else b"small" for number in self.compute(inputs["x"])]
            return {"y": np.array(labels, object)}

    assert find_row_dependence(Labels(lambda x: x.sum(1)), (1, 4), 1) is None
    mixed = Labels(lambda x: x.sum(1) - x.mean() * 2 + 1)
    assert "changes with the other rows" in find_row_dependence(mixed, (1, 4), 1)


def test_an_engine_warns_of_them_and_of_free_lengths_too(caplog):
    for shape in ((None, 2), (None, None)):
        with ServingEngine(Rows(lambda x: x.sum(1) + x.mean(), shape=shape), max_batch_size=4):
            pass
    assert caplog.text.count("depend on which requests share a batch") == 2
    assert "max_batch_size=1" in caplog.text


def test_a_model_that_does_not_take_the_length_that_is_tried_starts():
    def compute(x):
        if x.shape[1] != 3:
            raise ValueError
        return x.sum(1)

    with ServingEngine(Rows(compute, shape=(None, None))) as engine:
        np.testing.assert_array_equal(engine.predict(np.ones((1, 3), "float32")), [3])

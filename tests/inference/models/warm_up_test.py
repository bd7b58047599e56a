import subprocess
import sys

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError, Signature, TensorSpec
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.models.warm_up import (
    find_row_dependence,
    relative_difference,
    run_every_size,
)
from tests.inference.conftest import Doubler

FREE = Signature(
    inputs=(TensorSpec("x", (None, None), "float32"), TensorSpec("mask", (None, None), "bool")),
    outputs=(TensorSpec("sum", (None,), "float32"), TensorSpec("y", (None, None), "float32")),
)
PADDING = Padding(lengths=(4, 8), values={"x": 5.0}, masks={"mask": "x"})


class Summer:
    """Sums what the mask shows, and doubles each place."""

    signature = FREE

    def __init__(self, is_right=True):
        self.is_right = is_right
        self.shapes = []

    def run(self, inputs):
        x, mask = inputs["x"], inputs["mask"]
        self.shapes.append(x.shape)
        unmasked = np.where(mask, x, 0) if self.is_right else x
        return {"sum": unmasked.sum(1, dtype="float32"), "y": 2 * x}


def test_each_size_runs_in_each_executor_and_is_measured():
    executors, time = [Doubler(), Doubler()], BatchTime()
    run_every_size(executors, (1, 4), (), time)
    assert [executor.sizes for executor in executors] == [[1, 1, 4, 4], [1, 4]]
    assert time.is_known


def test_a_free_axis_is_run_at_each_length_or_not_at_all():
    summer = Summer()
    run_every_size([summer], (2,), (), BatchTime())
    assert summer.shapes == []
    run_every_size([summer], (2,), (4, 8), BatchTime())
    assert summer.shapes == [(2, 4), (2, 4), (2, 8), (2, 8)]


def test_a_model_that_takes_strings_is_not_run():
    strings = Signature(
        (TensorSpec("text", (None,), "object"), TensorSpec("x", (None, 2), "float32")),
        (TensorSpec("y", (None, 2), "float32"),),
    )
    doubler, time = Doubler(strings), BatchTime()
    run_every_size([doubler], (1, 2), (), time)
    assert (doubler.sizes, time.is_known) == ([], False)


def test_a_model_that_loses_rows_is_refused():
    class Losing(Doubler):
        def run(self, inputs):
            return {"y": super().run(inputs)["y"][:1]}

    with pytest.raises(NotSupportedError, match=r"Output 'y' has shape \(1, 2\) for 2 rows"):
        run_every_size([Losing()], (1, 2), (), BatchTime())


@pytest.mark.parametrize(
    ("outputs", "received"),
    [({}, r"\[\]"), ({"z": np.ones((1, 2))}, r"\['z'\]"), (None, "NoneType")],
)
def test_a_model_that_gives_other_outputs_than_it_says_is_refused(outputs, received):
    class Other(Doubler):
        def run(self, inputs):
            return outputs

    message = rf"gave the outputs {received}; its signature says \['y'\]"
    with pytest.raises(NotSupportedError, match=message):
        run_every_size([Other()], (1,), (), BatchTime())


def test_a_model_of_bfloat16_is_run_though_nothing_has_named_it_to_numpy():
    pytest.importorskip("ml_dtypes")
    script = """
from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import ServingEngine
class Same:
    signature = Signature(
        (TensorSpec("x", (None, 2), "bfloat16"),), (TensorSpec("y", (None, 2), "bfloat16"),)
    )
    def run(self, inputs):
        return {"y": inputs["x"]}
with ServingEngine(Same()) as engine:
    print(engine.predict([[1, 2]]).dtype)
"""
    command = [sys.executable, "-c", script]
    assert subprocess.check_output(command, text=True).strip() == "bfloat16"


def test_requests_of_unequal_lengths_share_a_batch_and_get_their_own_answers():
    summer = Summer()
    with ServingEngine(summer, max_batch_size=4, padding=PADDING) as engine:
        summer.shapes.clear()
        futures = [engine.submit(np.ones((1, length))) for length in (1, 3, 6)]
        outputs = [future.result(timeout=60) for future in futures]
    assert [answer["sum"].tolist() for answer in outputs] == [[1.0], [3.0], [6.0]]
    assert [answer["y"].shape for answer in outputs] == [(1, 1), (1, 3), (1, 6)]
    assert {shape[1] for shape in summer.shapes} <= {4, 8}


def test_a_model_that_takes_padding_for_data_is_refused():
    with pytest.raises(InvalidInputError, match=r"Padding changes the answers: output 'sum'"):
        ServingEngine(Summer(is_right=False), max_batch_size=1, padding=PADDING).start()


def test_where_every_length_is_one_to_fill_up_to_nothing_can_be_told():
    engine = ServingEngine(
        Summer(is_right=False),
        max_batch_size=1,
        padding=Padding(lengths=(1, 2), values={"x": 5.0}, masks={"mask": "x"}),
    )
    engine.start()
    engine.close()


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("expected", "received", "difference"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([0.0], [1e-3], 0.1),
        ([NAN, 2.0], [NAN, 3.0], 0.5),
        ([INF, 2.0], [INF, 3.0], 0.5),
        ([NAN], [1.0], INF),
        ([1.0], [NAN], INF),
        ([INF], [-INF], INF),
        ([3, 4], [3, 5], 0.25),
        ([True, False], [True, True], 1.0),
        ([b"a"], [b"a"], 0.0),
        ([b"a"], [b"b"], INF),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], INF),
    ],
)
def test_the_difference_is_relative_to_the_largest_value(expected, received, difference):
    kind = object if expected and isinstance(expected[0], bytes) else None
    arrays = [np.array(values, kind) for values in (expected, received)]
    with np.errstate(invalid="ignore"):
        assert relative_difference(*arrays) == pytest.approx(difference)


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

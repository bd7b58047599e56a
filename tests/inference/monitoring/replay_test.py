import json

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.monitoring.replay import replay_requests


@pytest.fixture
def log(doubler, rows, tmp_path):
    """A file with 40 requests, and one that failed."""
    path = tmp_path / "requests"
    with ServingEngine(doubler, log_requests=path, sample=1) as engine:
        for value in range(1, 41):
            engine.predict(rows(value))
        with pytest.raises(ArithmeticError):
            engine.predict(rows(-1))
    return path


def replay(doubler, log, change, **options):
    class Changed:
        signature = doubler.signature

        def run(self, inputs):
            return {"y": change(2 * inputs["x"])}

    with ServingEngine(Changed()) as engine:
        return replay_requests(engine, log, **options)


def test_the_same_model_gives_the_same_answers(doubler, log):
    report = replay(doubler, log, lambda y: y)
    assert (report.requests, report.equal, report.passed) == (40, 40, True)
    assert str(report).startswith("40 requests: 40 answers equal, 0 close, 0 different, 0 failed")


def test_small_differences_are_close_and_larger_ones_are_not(doubler, log):
    report = replay(doubler, log, lambda y: y * np.float32(1.00001))
    assert (report.equal, report.close, report.passed) == (0, 40, True)
    assert 5e-6 < report.largest_difference < 2e-5
    report = replay(doubler, log, lambda y: y * np.float32(1.00001), tolerance=1e-6)
    assert (report.different, report.passed) == (40, False)
    assert report.first.startswith("line 1: an output is off by 1e-05")


def test_one_answer_that_differs_is_found(doubler, log):
    report = replay(doubler, log, lambda y: np.where(y == 14, np.nan, y))
    assert (report.equal, report.different) == (39, 1)
    assert report.first == "line 7: output 'y' is finite where it was not, or the other way"


def test_other_names_and_shapes_are_told(log):
    class Other:
        signature = Signature(
            (TensorSpec("x", (None, 2), "float32"),), (TensorSpec("y", (None, 2), "float32"),)
        )
        outputs = staticmethod(lambda x: {"z": x})

        def run(self, inputs):
            return self.outputs(inputs["x"])

    other = Other()
    with ServingEngine(other, warm_up=False) as engine:
        assert "the outputs are ['z']; they were ['y']" in replay_requests(engine, log).first
        other.outputs = lambda x: {"y": x[:, :1]}
        assert "is float32 (1, 1); it was float32 (1, 2)" in replay_requests(engine, log).first
        other.outputs = lambda x: {"y": (2 * x).astype("int64")}
        assert "is int64 (1, 2)" in replay_requests(engine, log).first


def test_integers_and_strings_must_be_equal(tmp_path, doubler):
    class Model:
        signature = Signature(
            (TensorSpec("x", (None,), "int64"),),
            (TensorSpec("n", (None,), "int64"), TensorSpec("s", (None,), "object")),
        )
        add = 0

        def run(self, inputs):
            text = np.array([b"%d" % value for value in inputs["x"].tolist()], object)
            return {"n": inputs["x"] + self.add, "s": text}

    model, path = Model(), tmp_path / "requests"
    with ServingEngine(model, log_requests=path, sample=1) as engine:
        engine.predict([2**60])
    with ServingEngine(model) as engine:
        assert replay_requests(engine, path).equal == 1
        model.add = 1
        assert replay_requests(engine, path).first == "line 1: output 'n' is another"


def test_requests_that_fail_now_are_counted(doubler, log):
    def fail(y):
        raise ArithmeticError("broken")

    with pytest.raises(ArithmeticError):
        replay(doubler, log, fail)  # It fails at its warm-up already.

    class Failing:
        signature = doubler.signature

        def run(self, inputs):
            raise ArithmeticError("broken")

    with ServingEngine(Failing(), warm_up=False) as engine:
        report = replay_requests(engine, log)
        assert (report.requests, report.failed) == (40, 40)
        assert report.first == "line 1 failed with ArithmeticError: broken"
        assert "no model 'other'" in replay_requests(engine, log, model="other").first


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"status": 200, "path": "/v1/models/model:predict"}',  # Of an access log.
        '{"outputs": {}}',
        '{"outputs": {}, "inputs": {"x": {}}}',
    ],
)
def test_a_file_that_is_none_is_refused_with_the_line(doubler, log, line):
    log.write_text(f"{log.read_text().splitlines()[0]}\n{line}\n")
    with (
        ServingEngine(doubler) as engine,
        pytest.raises(InvalidInputError, match=f"Line 2 of '{log}'"),
    ):
        replay_requests(engine, log)


def test_a_line_that_is_cut_off_is_passed_over_and_told(doubler, log):
    log.write_bytes(log.read_bytes()[:-90])  # The last two: one had failed.
    report = replay(doubler, log, lambda y: y)
    lines = len(log.read_bytes().splitlines())
    assert (report.requests, report.unreadable, report.passed) == (lines - 1, 1, True)
    assert str(report).endswith("; lines that could not be read: 1")


@pytest.mark.parametrize("text", ["", "GET / 200\nGET / 200\n"])
def test_a_file_without_a_request_is_refused(doubler, tmp_path, text):
    path = tmp_path / "requests"
    path.write_text(text)
    with (
        ServingEngine(doubler) as engine,
        pytest.raises(InvalidInputError, match="holds no request with its answer"),
    ):
        replay_requests(engine, path)


def test_a_file_that_is_missing_is_refused(doubler, tmp_path):
    with ServingEngine(doubler) as engine, pytest.raises(InvalidInputError, match="Can't read"):
        replay_requests(engine, tmp_path / "missing")


def test_a_line_tells_when_it_was_asked(log):
    assert json.loads(log.read_text().splitlines()[0])["time"] > 1.7e9

from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek import graph
from keras_deepseek.artifacts.bundle import Verification
from keras_deepseek.deploy import Exporter, ExportReport
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference import ServingEngine


def test_a_job_asks_for_what_is_right_in_the_models_precision(weights_format, job_of):
    job = job_of(weights_format())
    assert not job.allows_difference
    assert job.precision is None
    assert job.optional_samples == ()
    assert len(job.samples) == 2


@pytest.mark.parametrize(
    ("verification", "expected"),
    [
        (
            Verification("verified", num_samples=3, largest_difference=1.5e-7),
            "m.onnx: onnx, verified on 3 batches, largest difference 1.5e-07 (by hand, 0.5 s)",
        ),
        (
            Verification("verified", num_samples=2, signatures=("a", "b")),
            "m.onnx: onnx, verified on 2 batches by a, b, largest difference 0 (by hand, 0.5 s)",
        ),
        (
            Verification("unverified", "no GPU"),
            "m.onnx: onnx, unverified: no GPU (by hand, 0.5 s)",
        ),
    ],
)
def test_a_report_says_in_one_line_what_was_found(verification, expected):
    report = ExportReport(Path("m.onnx"), "onnx", "by hand", verification, (), 0.5)
    assert str(report) == expected
    assert report.verified == (verification.state == "verified")


def test_a_notebook_shows_that_line():
    lines = []
    report = ExportReport(Path("m"), "onnx", "by hand", Verification("unverified", "no GPU"), (), 1)
    report._repr_pretty_(SimpleNamespace(text=lines.append), False)
    assert lines == [str(report)]


@pytest.fixture
def classifier():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(30, 16)(tokens)
    x = x + layers.MultiHeadAttention(2, 8)(x, x)
    x = x + layers.Dense(16)(layers.Dense(64, activation="relu")(x))
    return keras.Model(tokens, layers.Dense(3)(x[:, 0]), name="classifier")


def test_the_artifact_of_a_model_computes_less(classifier, tmp_path, capsys):
    exporter = Exporter(classifier, "savedmodel", optimize_graph=True)
    assert exporter.export(tmp_path / "optimized").verified
    assert "multiply-adds, now" in capsys.readouterr().out
    assert exporter.check(tmp_path / "optimized").verified
    tokens = np.arange(12).reshape(2, 6).astype("int32")
    received = exporter.load(tmp_path / "optimized")({"tokens": tokens})
    expected = classifier.predict(tokens, verbose=0)
    np.testing.assert_allclose(received["output_0"], expected, atol=1e-5)


def test_a_model_without_slack_is_exported_as_it_is(tmp_path, capsys):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    assert Exporter(model, "savedmodel", optimize_graph=True).export(tmp_path / "out").verified
    assert "there is nothing to optimize" in capsys.readouterr().out


def test_a_wrong_value_is_refused(classifier):
    with pytest.raises(InvalidInputError, match="`optimize_graph` must be True or False"):
        Exporter(classifier, "savedmodel", optimize_graph="all")


class Subclassed(keras.Model):
    def __init__(self):
        x = keras.Input((6, 8))
        super().__init__(x, layers.Dense(3)(layers.MultiHeadAttention(2, 8)(x, x)[:, 0]))


def test_an_optimized_subclassed_model_is_exported_and_served(tmp_path):
    model, x = Subclassed(), np.random.default_rng(0).normal(size=(5, 6, 8)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(x))
    optimized = graph.optimize(model, x, measure=False)
    assert optimized.passes
    assert Exporter(optimized, "savedmodel", verbose=False).export(tmp_path / "out").verified
    with ServingEngine(optimized, replicas=2) as engine:
        for answer in [engine.submit(x) for _ in range(4)]:
            np.testing.assert_allclose(answer.result()["output_0"], expected, atol=1e-5)

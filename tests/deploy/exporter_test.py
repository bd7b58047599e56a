import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.deploy import Exporter, register_exporter
from keras_deepseek.deploy.formats import registry
from keras_deepseek.errors import (
    BundleError,
    ExportError,
    InvalidInputError,
)


def batch_of(signature, batch_size=5, length=7):
    generator = np.random.default_rng(9)
    return {
        spec.name: generator.integers(
            0,
            5,
            [
                batch_size if axis == 0 else length if size is None else size
                for axis, size in enumerate(spec.shape)
            ],
        ).astype(spec.dtype)
        for spec in signature.inputs
    }


def check_outputs(exporter, infer):
    """Compares what a function of arrays by name gives with what the exporter's model does."""
    named, batch = exporter._model, batch_of(exporter.signature)
    received = infer(batch)
    predicted = named.model.predict(named.pack_inputs(batch), verbose=0)
    for name, expected in named.name_outputs(predicted).items():
        np.testing.assert_allclose(received[name], expected, atol=1e-5)


@pytest.mark.each_backend
def test_an_onnx_bundle_computes_what_the_model_computes(model, tmp_path, tensorflow_installed):
    import onnxruntime

    exporter = Exporter(model, backend="onnx", verbose=False)
    report = exporter.export(tmp_path / "bundle")
    assert report.verified
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.name == model.name
    assert bundle.manifest.signature == exporter.signature
    assert bundle.manifest.verification.num_samples >= 3
    session = onnxruntime.InferenceSession(bundle.entry)
    names = [output.name for output in session.get_outputs()]
    check_outputs(exporter, lambda batch: dict(zip(names, session.run(None, batch), strict=True)))


@pytest.mark.each_backend
def test_a_saved_model_bundle_computes_what_the_model_computes(
    model, tmp_path, tensorflow_installed
):
    from keras_deepseek.backend.runtimes.saved_model import load_saved_model

    exporter = Exporter(model, backend="savedmodel", verbose=False)
    assert exporter.export(tmp_path / model.name / "1").verified
    bundle = Bundle.open(tmp_path / model.name / "1")
    assert (bundle.entry / "saved_model.pb").is_file()
    check_outputs(exporter, load_saved_model(bundle.entry))


def test_a_path_with_the_formats_suffix_asks_for_the_file(digits, tmp_path, tensorflow_installed):
    import onnxruntime

    report = Exporter(digits, "onnx", verbose=False).export(tmp_path / "digits.onnx")
    assert report.path == tmp_path / "digits.onnx"
    assert os.listdir(tmp_path) == ["digits.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx")
    assert [value.name for value in session.get_inputs()] == ["image"]
    assert [value.name for value in session.get_outputs()] == ["probabilities"]


def test_progress_names_the_route_and_the_result(digits, tmp_path, capsys, tensorflow_installed):
    Exporter(digits, "savedmodel").export(tmp_path / "digits")
    first, *_, last = capsys.readouterr().out.strip().splitlines()
    assert first == "savedmodel: computing what the model gives"
    assert "verified on 4 batches" in last


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"precision": "float15"}, "did you mean 'float16'"),
        ({"precision": "float32"}, "Leave `precision` out for the model's own precision"),
        ({"precision": "int8"}, "needs calibration="),
        ({"calibration": np.zeros((2, 8, 8, 1))}, "received precision=None"),
        (
            {"precision": "int8", "calibration": np.zeros((2, 7, 8, 1))},
            r"calibration.*7, 8, 1\)",
        ),
        ({"optimize": True}, "Unknown option of onnx 'optimize': did you mean 'optimize_graph'"),
        ({"format": "onnx"}, "Known: backend, calibration, .*, opset, .*, samples, "),
        ({"verify": False}, "Unknown value of verify False. Known: raise, warn"),
        ({"name": "../x"}, "`name` must be a text without slashes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(digits, arguments, match):
    with pytest.raises(InvalidInputError, match=match):
        Exporter(digits, "onnx", **arguments)


@pytest.mark.parametrize("path", [None, 5, "", []])
@pytest.mark.parametrize("method", ["export", "check", "load"])
def test_what_is_no_path_is_refused(dense, method, path):
    exporter = Exporter(dense, "onnx", verbose=False)
    with pytest.raises(InvalidInputError, match="`path` must be a path, received"):
        getattr(exporter, method)(path)


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long_for_the_system_is_refused(dense, tmp_path, length):
    with pytest.raises(BundleError, match=r"(?s)can .*too long.*Name another place"):
        Exporter(dense, "onnx", verbose=False).export(tmp_path / ("x" * length))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backend", "arguments"),
    [
        ("onxx", {}),
        (None, {}),
        ("onnx", {"opset": 17}),
        ("onnx", {"opsett": 18}),
        ("tensorrt", {"opset": 26}),
        ("tensorrt", {"flavor": "rtxx"}),
        ("tensorrt", {"opsett": 26}),
        ("savedmodel", {"classify": ["a", "a"]}),
        ("custom", {"opset": 18}),
        ("onnx", {"samples": 5}),
        ("onnx", {"precision": "int8"}),
    ],
)
def test_what_is_wrong_whatever_the_model_is_does_not_call_it(backend, arguments):
    class Uncalled(keras.Model):
        def call(self, inputs):
            raise AssertionError

    model = Uncalled()
    model.build((None, 4))
    with pytest.raises(InvalidInputError):
        Exporter(model, backend, **arguments)


def test_what_is_asked_for_and_can_not_be_is_told_before_any_work(digits, tmp_path, capsys):
    with pytest.raises(InvalidInputError, match=r"names '.*nothing.py', but there is no such file"):
        Exporter(digits, "onnx", custom_objects_from=[tmp_path / "nothing.py"])
    with pytest.raises(InvalidInputError, match=r"nothing\.py', but there is no such file"):
        Exporter(digits, "onnx", custom_objects_from=str(tmp_path / "nothing.py"))
    with pytest.raises(InvalidInputError, match=r"must be a list.*received 5"):
        Exporter(digits, "onnx", custom_objects_from=5)
    with pytest.raises(InvalidInputError, match="'custom' takes no options"):
        Exporter(digits, "custom", opset=18)
    with pytest.raises(InvalidInputError, match="one output, of shape"):
        Exporter(digits, "savedmodel", classify=["a", "b"]).export(tmp_path / "out")
    assert capsys.readouterr().out == ""


def test_what_differs_is_written_where_a_warning_will_do(
    dense, tmp_path, monkeypatch, weights_format
):
    monkeypatch.setattr(registry, "_registered", {})
    register_exporter(weights_format(spoil=0.1))
    with pytest.raises(ExportError, match="differs by"):
        Exporter(dense, "weights", verbose=False).export(tmp_path / "wrong")
    assert not any(tmp_path.iterdir())
    with pytest.warns(UserWarning, match=r"failed: Output 'output_0'.*Do not serve it"):
        report = Exporter(dense, "weights", verify="warn", verbose=False).export(tmp_path / "wrong")
    assert not report.verified
    assert Bundle.open(tmp_path / "wrong").manifest.verification.state == "failed"


def test_an_unbuilt_model_is_refused():
    with pytest.raises(InvalidInputError, match="not built"):
        Exporter(keras.Sequential([keras.layers.Dense(2)]), backend="savedmodel")


def test_a_folder_with_other_things_is_refused_before_any_work(digits, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        Exporter(digits, "savedmodel", verbose=False).export(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_folder_in_the_place_of_a_file_is_refused(digits, tmp_path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        Exporter(digits, "onnx", verbose=False).export(tmp_path / "model.onnx")


def test_a_failure_names_each_route_and_leaves_nothing(digits, tmp_path, tensorflow_missing):
    with pytest.raises(ExportError, match=r"`tensorflow` is not installed.*\[tensorflow\]"):
        Exporter(digits, "savedmodel", verbose=False).export(tmp_path / "digits")
    assert not any(tmp_path.iterdir())


KILLED = """
import sys, os, signal, keras
from keras_deepseek.deploy import Exporter, register_exporter

class Slow:
    name, suffix, entry = "slow", "", "."
    def write(self, model, folder):
        (folder / "half.bin").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    def run(self, folder, samples):
        return []

register_exporter(Slow())
Exporter(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), "slow").export(sys.argv[1])
"""


def test_killed_in_the_middle_nothing_is_left_that_opens(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "digits"], check=False, capture_output=True
    )
    assert finished.returncode == -signal.SIGKILL
    assert not (tmp_path / "digits").exists()
    for leftover in tmp_path.iterdir():
        with pytest.raises(BundleError):
            Bundle.open(leftover)


def test_a_lambda_of_a_live_model_goes_to_another_process(tmp_path, tensorflow_installed):
    pytest.importorskip("onnxruntime")
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Lambda(lambda x: 2 * x + 1, output_shape=(3,))(x))
    assert Exporter(model, "savedmodel", verbose=False).export(tmp_path / "model").verified

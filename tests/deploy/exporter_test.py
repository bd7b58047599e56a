import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.errors import (
    BundleError,
    ExportError,
    InvalidInputError,
    NotSupportedError,
)
from keras_deepseek.deploy import Exporter, register_exporter, registry


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


def test_an_onnx_bundle_computes_what_the_model_computes(model, tmp_path, tensorflow_installed):
    import onnxruntime

    exporter = Exporter(model, backend="onnx", verbose=False)
    report = exporter.export(tmp_path / "bundle")
    assert report.verified
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.name == model.name
    assert bundle.manifest.signature == exporter.signature
    assert bundle.manifest.verification.num_samples >= 5
    session = onnxruntime.InferenceSession(bundle.entry)
    names = [output.name for output in session.get_outputs()]
    check_outputs(exporter, lambda batch: dict(zip(names, session.run(None, batch), strict=True)))


def test_a_saved_model_bundle_computes_what_the_model_computes(
    model, tmp_path, tensorflow_installed
):
    from keras_deepseek.backend.saved_model import load_saved_model

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


def test_a_float32_head_on_layers_of_half_precision_is_judged_by_these(
    tmp_path, tensorflow_installed
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", dtype="mixed_float16")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, dtype="float32", name="y")(hidden))
    report = Exporter(model, "onnx", verbose=False).export(tmp_path / "model")
    assert report.verified
    assert Exporter(model, "onnx", verbose=False).check(tmp_path / "model").verified
    model.layers[-1].bias.assign(0.1 * np.ones(4))
    with pytest.raises(ExportError, match="differs by"):
        Exporter(model, "onnx", verbose=False).check(tmp_path / "model")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_output_of_an_inputs_name_is_refused_before_work_is_done(
    backend, tmp_path, capsys, monkeypatch
):
    from keras_deepseek.deploy.formats.openvino import OpenVINOFormat

    monkeypatch.setattr(registry, "_registered", {})
    register_exporter(OpenVINOFormat())
    inputs = {"score": keras.Input((3,), name="score")}
    model = keras.Model(inputs, {"score": keras.layers.Dense(2)(inputs["score"])})
    with pytest.raises(InvalidInputError, match="of an input and of an output: score"):
        Exporter(model, backend).export(tmp_path / "model")
    assert capsys.readouterr().out == ""
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it changes this process")
def test_weights_beyond_one_file_ask_for_a_folder(digits, tmp_path, monkeypatch):
    import onnxruntime

    from keras_deepseek.deploy.onnx_passes import save

    monkeypatch.setattr(save, "LARGEST_FILE", 1_000)
    exporter = Exporter(digits, "onnx", verbose=False)
    with pytest.raises(ExportError, match=r"can't hold this model.*export\('digits'\)"):
        exporter.export(tmp_path / "digits.onnx")
    assert not any(tmp_path.iterdir())
    assert exporter.export(tmp_path / "digits").verified
    assert (tmp_path / "digits" / "model.onnx.data").is_file()
    assert exporter.check(tmp_path / "digits").verified
    session = onnxruntime.InferenceSession(Bundle.open(tmp_path / "digits").entry)
    assert session.run(None, {"image": np.zeros((2, 8, 8, 1), "float32")})[0].shape == (2, 10)


def test_an_onnx_file_is_the_same_each_time(model, tmp_path, tensorflow_installed):
    for place in ("first.onnx", "second.onnx"):
        Exporter(model, "onnx", verbose=False).export(tmp_path / place)
    first, second = ((tmp_path / f"{name}.onnx").read_bytes() for name in ("first", "second"))
    assert first == second


def test_progress_names_the_route_and_the_result(digits, tmp_path, capsys, tensorflow_installed):
    Exporter(digits, "savedmodel").export(tmp_path / "digits")
    first, *_, last = capsys.readouterr().out.strip().splitlines()
    assert first == "savedmodel: computing what the model gives"
    assert "verified on 6 batches" in last


def test_own_samples_are_what_it_is_verified_on(digits, tmp_path, tensorflow_installed):
    images = np.zeros((2, 8, 8, 1))
    exporter = Exporter(digits, "onnx", samples=[images, images[:1]], verbose=False)
    assert exporter.export(tmp_path / "digits").verification.num_samples == 2


@pytest.mark.parametrize("samples", [[], [np.zeros((2, 7, 8, 1))]])
def test_samples_that_do_not_fit_are_refused(digits, samples):
    with pytest.raises(InvalidInputError):
        Exporter(digits, "savedmodel", samples=samples)


def test_a_model_trained_in_half_precision_exports_in_float32(tmp_path, tensorflow_installed):
    from keras_deepseek.training import Trainer

    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(3, name="y")], name="line"
    )
    trainer = Trainer(model, optimizer="sgd", loss="mse", fp16_enabled=True)
    trainer.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    report = Exporter(model, "onnx", verbose=False).export(tmp_path / "line")
    assert Bundle.open(report.path).manifest.precision == "float32"
    assert report.verification.largest_difference < 1e-6


@pytest.mark.parametrize(
    ("backend", "policy"),
    [
        ("onnx", "mixed_float16"),
        ("savedmodel", "mixed_float16"),
        ("savedmodel", "mixed_bfloat16"),
    ],
)
def test_a_model_of_half_precision_exports_as_it_is(
    tmp_path, backend, policy, tensorflow_installed
):
    dense = keras.layers.Dense(3, dtype=policy)
    model = keras.Sequential([keras.Input((4,)), dense], name="half")
    report = Exporter(model, backend, verbose=False).export(tmp_path / "half")
    assert report.verified
    manifest = Bundle.open(tmp_path / "half").manifest
    assert manifest.signature.outputs[0].dtype == policy.removeprefix("mixed_")


def test_bfloat16_goes_by_the_opset_that_has_it(digits, tmp_path, tensorflow_installed):
    exporter = Exporter(digits, "onnx", precision="bfloat16", verbose=False)
    with pytest.raises(InvalidInputError, match=r"no Conv in bfloat16 at opset 18: pass opset=22"):
        exporter.export(tmp_path / "brief")
    assert not any(tmp_path.iterdir())
    exporter = Exporter(digits, "onnx", precision="bfloat16", opset=22, verbose=False)
    assert exporter.export(tmp_path / "brief").verified


@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_layers_may_compute_in_half_precision(digits, tmp_path, backend, tensorflow_installed):
    exporter = Exporter(digits, backend, precision="float16", verbose=False)
    report = exporter.export(tmp_path / "half")
    assert report.verified
    assert 0 < report.verification.largest_difference < 1e-2
    assert report.verification.agreement["probabilities"]["same_largest"] > 0.9
    manifest = Bundle.open(tmp_path / "half").manifest
    assert manifest.precision == "float16"
    assert manifest.signature.outputs[0].dtype == "float32"
    assert manifest.verification == report.verification
    assert digits.compute_dtype == "float32"
    assert exporter.check(tmp_path / "half").verified


def test_int8_is_made_for_data_and_verified_on_others(digits, tmp_path, tensorflow_installed):
    import onnx

    images = np.random.default_rng(0).random((40, 8, 8, 1))
    report = Exporter(digits, "onnx", precision="int8", calibration=images, verbose=False).export(
        tmp_path / "small.onnx"
    )
    assert report.verification.num_samples == 3  # Of 1, 3 and 4 rows, a fifth of what was given.
    assert report.verification.agreement["probabilities"]["relative_error"] < 0.05
    assert "% off" in str(report)
    nodes = onnx.load(tmp_path / "small.onnx").graph.node
    assert any(node.op_type == "QuantizeLinear" for node in nodes)


def test_samples_that_move_no_output_verify_nothing(tmp_path, tensorflow_installed):
    inputs = keras.Input((3,), name="features")
    saturated = keras.layers.Dense(
        2, activation="sigmoid", kernel_initializer="ones", bias_initializer="ones", name="share"
    )(inputs * 1e4 + 1e6)
    exporter = Exporter(keras.Model(inputs, saturated), "onnx", verbose=False)
    report = exporter.export(tmp_path / "saturated.onnx")
    assert report.verification.state == "unverified"
    assert "output 'share' hardly moves" in report.verification.reason
    rows = np.linspace(-110.0, -90.0, 6, dtype="float32")[:, None] * np.ones(3, "float32")
    exporter = Exporter(keras.Model(inputs, saturated), "onnx", samples=[rows], verbose=False)
    assert exporter.check(tmp_path / "saturated.onnx").verified


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"precision": "float15"}, "did you mean 'float16'"),
        ({"precision": "int8"}, "go together"),
        ({"calibration": np.zeros((2, 8, 8, 1))}, "go together"),
        ({"precision": "int8", "calibration": np.zeros((2, 7, 8, 1))}, r"\(2, 7, 8, 1\)"),
        ({"verify": "no"}, "Unknown verify="),
    ],
)
def test_arguments_that_do_not_fit_are_refused(digits, arguments, match):
    with pytest.raises(InvalidInputError, match=match):
        Exporter(digits, "onnx", **arguments)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.zeros((0, 8, 8, 1), "float32"), "has no rows"),
        (np.full((3, 8, 8, 1), np.nan, "float32"), "NaN or infinity in input 'image'"),
    ],
)
def test_rows_that_give_no_ranges_are_refused(digits, rows, match):
    with pytest.raises(InvalidInputError, match=match):
        Exporter(digits, "onnx", precision="int8", calibration=rows)


def test_what_is_asked_for_and_can_not_be_is_told_before_any_work(digits, tmp_path, capsys):
    with pytest.raises(InvalidInputError, match=r"names '.*nothing.py', where no file is"):
        Exporter(digits, "onnx", custom_objects_from=[tmp_path / "nothing.py"])
    with pytest.raises(InvalidInputError, match=r"nothing\.py', where no file is"):
        Exporter(digits, "onnx", custom_objects_from=str(tmp_path / "nothing.py"))
    with pytest.raises(InvalidInputError, match=r"must be a list.*received 5"):
        Exporter(digits, "onnx", custom_objects_from=5)
    with pytest.raises(InvalidInputError, match="'custom' takes no options"):
        Exporter(digits, "custom", opset=18)
    with pytest.raises(InvalidInputError, match="one output, of shape"):
        Exporter(digits, "savedmodel", classify=["a", "b"]).export(tmp_path / "out")
    assert capsys.readouterr().out == ""


def test_a_registered_format_takes_its_options_itself(digits, text_format):
    with pytest.raises(InvalidInputError, match=r"register_exporter\(MyFormat\(opset=...\)\)"):
        Exporter(digits, "text", opset=18)


def test_int8_is_of_onnx_alone(digits):
    with pytest.raises(InvalidInputError, match=r"onnx or tensorrt alone; received .*savedmodel"):
        Exporter(digits, "savedmodel", precision="int8", calibration=np.zeros((2, 8, 8, 1)))


def test_an_artifact_is_checked_against_its_model(digits, tmp_path, capsys, tensorflow_installed):
    for place in ("digits", "digits.onnx"):
        Exporter(digits, "onnx", verbose=False).export(tmp_path / place)
        assert Exporter(digits, "onnx").check(tmp_path / place).verified
        assert "checked" in capsys.readouterr().out
    digits.layers[-1].bias.assign(np.arange(10.0))
    for place in ("digits", "digits.onnx"):
        with pytest.raises(ExportError, match=r"differs by .*Export the model again"):
            Exporter(digits, "onnx", verbose=False).check(tmp_path / place)
    report = Exporter(digits, "onnx", verify="warn", verbose=False).check(tmp_path / "digits")
    assert report.verification.state == "failed"
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ExportError, match="is of another model: it has inputs image"):
        Exporter(other, "onnx", verbose=False).check(tmp_path / "digits")
    with pytest.raises(ExportError, match="holds 'onnx'; expected 'savedmodel'"):
        Exporter(digits, "savedmodel", verbose=False).check(tmp_path / "digits")
    with pytest.raises(BundleError, match="No bundle"):
        Exporter(digits, "onnx", verbose=False).check(tmp_path / "nothing")


def test_a_saved_model_is_checked_on_every_backend(digits, tmp_path, tensorflow_installed):
    exporter = Exporter(digits, "savedmodel", verbose=False)
    exporter.export(tmp_path / "digits")
    assert exporter.check(tmp_path / "digits").verified


def test_what_differs_is_written_where_a_warning_will_do(digits, tmp_path, monkeypatch):
    class Wrong(TextFormat):
        def run(self, folder, samples):
            return [
                {"probabilities": np.zeros((len(sample["image"]), 10), "float32")}
                for sample in samples
            ]

    monkeypatch.setattr(registry, "_registered", {})
    register_exporter(Wrong())
    with pytest.raises(ExportError, match="differs by"):
        Exporter(digits, "text", verbose=False).export(tmp_path / "wrong")
    assert not any(tmp_path.iterdir())
    with pytest.warns(UserWarning, match=r"failed: Output 'probabilities'.*Do not serve it"):
        report = Exporter(digits, "text", verify="warn", verbose=False).export(tmp_path / "wrong")
    assert not report.verified
    assert Bundle.open(tmp_path / "wrong").manifest.verification.state == "failed"


class TextFormat:
    name, suffix, entry = "text", ".txt", "model.txt"

    def write(self, model, folder):
        (folder / self.entry).write_text(
            json.dumps([w.tolist() for w in model.model.get_weights()])
        )
        return "JSON"

    def run(self, folder, samples):
        raise NotSupportedError("text is not run")


@pytest.fixture
def text_format(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    register_exporter(TextFormat())


@pytest.mark.parametrize(("backend", "path"), [("text", "bundle"), ("custom", "model.txt")])
def test_a_registered_format_is_written(digits, tmp_path, text_format, backend, path):
    report = Exporter(model=digits, backend=backend, verbose=False).export(tmp_path / path)
    assert (report.verified, report.verification.reason) == (False, "text is not run")
    if backend == "text":
        assert Bundle.open(tmp_path / path).manifest.verification.state == "unverified"
    else:
        assert json.loads((tmp_path / path).read_text())


def test_custom_without_a_registered_format_says_how(digits, tmp_path):
    with pytest.raises(InvalidInputError, match="register_exporter"):
        Exporter(model=digits, backend="custom").export(tmp_path / "model.unknown")


def test_an_unknown_backend_gets_the_nearest_name(digits):
    with pytest.raises(InvalidInputError, match="did you mean 'savedmodel'"):
        Exporter(digits, backend="saved_model")


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
    with pytest.raises(ExportError, match=r"TensorFlow process: .*\[tensorflow\]"):
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
    for left in tmp_path.iterdir():
        with pytest.raises(BundleError):
            Bundle.open(left)

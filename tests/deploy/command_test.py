import argparse
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.deploy import command
from keras_deepseek.deploy.formats import registry
from keras_deepseek.errors import InvalidInputError


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([os.fspath(argument) for argument in arguments]))


def test_a_file_becomes_a_bundle(digits, tmp_path, tensorflow_installed):
    digits.save(tmp_path / "digits.keras")
    run(
        tmp_path / "digits.keras",
        *("--format", "onnx", "--opset", "20", "--name", "numbers"),
        *("-o", tmp_path / "out"),
    )
    manifest = Bundle.open(tmp_path / "out").manifest
    assert (manifest.name, manifest.format) == ("numbers", "onnx")
    assert "opset 20" in manifest.route


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"No file at .*nothing\.keras"):
        run(tmp_path / "nothing.keras", "--format", "onnx", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_format_as_the_backend_is_told_its_flag(capsys):
    with pytest.raises(SystemExit):
        run("model.keras", "--backend", "onnx")
    assert "'onnx' is a format. Pass --format onnx" in capsys.readouterr().err


AT_ONCE = """
import contextlib, io, json, sys
from keras_deepseek.cli import main

for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(["export", *arguments])
    print(json.dumps([code, errors.getvalue()]))
    assert not {"keras", "tensorflow", "jax", "torch"} & set(sys.modules), arguments
"""


def test_invalid_arguments_fail_before_keras_is_loaded(tmp_path):
    (tmp_path / "model.keras").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "model.onnx").mkdir()
    np.savez(tmp_path / "rows.npz", a=np.ones((3, 2)), b=np.ones((4, 2)))
    model, out = str(tmp_path / "model.keras"), ["-o", str(tmp_path / "out")]
    onnx = [model, "--format", "onnx", *out]
    saved_model = [model, "--format", "savedmodel", *out]
    engine = [model, "--format", "tensorrt", *out]
    rows = str(tmp_path / "rows.npz")
    cases = {
        "Unknown export format 'onxx': did you mean 'onnx'": [model, "--format", "onxx", *out],
        "format 'saved_model': did you": [model, "--benchmark", "--format", "saved_model"],
        "`opset` must be an integer from 18 to 25; received 12": [*onnx, "--opset", "12"],
        "from 18 to 25; received 26": [*engine, "--opset", "26"],
        "--format savedmodel has no --opset. Leave it out, or pass --format onnx or ": [
            *saved_model,
            "--opset",
            "20",
        ],
        "--format onnx has no --classify": [*onnx, "--regress", "--classify", "a", "b"],
        "names a class twice: ['a', 'b', 'a']": [*saved_model, "--classify", "a", "b", "a"],
        "`name` must be a text without slashes": [*onnx, "--name", "a/b"],
        "precision='int8' needs calibration=": [*onnx, "--precision", "int8"],
        "int8 is for onnx, tensorrt, litert; received": [
            *saved_model,
            "--precision",
            "int8",
            "--calibrate",
            rows,
        ],
        "but there is no such file": [*onnx, "--custom-objects-from", str(tmp_path / "layers.py")],
        "AXIS=SMALLEST,USUAL,LARGEST": [*engine, "--profile", "batch"],
        "is not a bundle, so it is not replaced": [*onnx[:3], "-o", str(tmp_path / "mine")],
        "is a folder; expected a path for a file": [*onnx[:3], "-o", str(tmp_path / "model.onnx")],
        "No bundle at": [*onnx, "--check"],
        "No file at": [str(tmp_path / "none.keras"), *onnx[1:]],
        "the rows are a: 3, b: 4": [*onnx, "--samples", rows],
        "No arrays can be read from": [*onnx, "--samples", model],
        "rows.npz' must have the same number": [*onnx, "--precision", "int8", "--calibrate", rows],
        "leave --samples, --classify, --regress out": [
            *(model, "--benchmark", "--samples", rows, "--regress", "--classify")
        ],
    }
    ended = subprocess.run(
        [sys.executable, "-c", AT_ONCE, json.dumps(list(cases.values()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    replies = [json.loads(line) for line in ended.stdout.splitlines()]
    for expected, (code, message) in zip(cases, replies, strict=True):
        assert code == 2
        assert expected in message
    assert sorted(os.listdir(tmp_path)) == ["mine", "model.keras", "model.onnx", "rows.npz"]


def test_a_model_is_verified_on_rows_of_files_and_classifies(
    digits, tmp_path, capsys, tensorflow_installed
):
    digits.save(tmp_path / "digits.keras")
    images = np.random.default_rng(0).random((9, 8, 8, 1), "float32")
    np.savez(tmp_path / "named.npz", image=images)
    np.save(tmp_path / "plain.npy", images[:2])
    arguments = [tmp_path / "digits.keras", "--format", "savedmodel", "-o", tmp_path / "out"]
    data = ["--samples", tmp_path / "named.npz", "--samples", tmp_path / "plain.npy"]
    run(*arguments, *data, "--classify", *"abcdefghij")
    verification = Bundle.open(tmp_path / "out").manifest.verification
    # Rows of the first file in batches of 1, 3, 4 and 1, those of the second in 1 and 1.
    assert (verification.state, verification.num_samples) == ("verified", 6)
    assert verification.signatures == ("serving_default", "serving_classify")
    run(*arguments, "--check", "--classify", *"abcdefghij")
    assert "verified on 6 batches by serving_default" in capsys.readouterr().out
    with pytest.raises(InvalidInputError, match=r"For 1 value a row.*received probabilities"):
        run(*arguments, "--regress")
    np.savez(tmp_path / "other.npz", picture=images)
    with pytest.raises(InvalidInputError, match=r"`samples\[0\]`: .*unknown \['picture'\]"):
        run(*arguments, "--samples", tmp_path / "other.npz")


def test_a_format_of_a_users_module_may_be_named(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    dense.save(tmp_path / "dense.keras")
    (tmp_path / "counting_format.py").write_text(COUNTING)
    arguments = [tmp_path / "dense.keras", "--format", "counting", "-o", tmp_path / "out"]
    run(*arguments, "--custom-objects-from", tmp_path / "counting_format.py")
    assert Bundle.open(tmp_path / "out").manifest.format == "counting"


COUNTING = """
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.deploy import register_exporter

class Counting:
    name, suffix, entry = "counting", "", "count.txt"
    def write(self, model, folder):
        (folder / self.entry).write_text(str(model.model.count_params()))
        return "counting"
    def run(self, folder, samples):
        raise NotSupportedError("a number can't be run")

register_exporter(Counting())
"""


def test_classes_may_go_by_their_numbers():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parsed = parser.parse_args(["model.keras", "--format", "savedmodel", "--classify"])
    assert command._options(parsed) == {"classify": True}


def test_rows_of_a_file_calibrate_int8_and_an_artifact_is_checked(
    digits, tmp_path, capsys, tensorflow_installed
):
    digits.save(tmp_path / "digits.keras")
    np.savez(tmp_path / "rows.npz", image=np.random.default_rng(0).random((9, 8, 8, 1)))
    arguments = [tmp_path / "digits.keras", "--format", "onnx", "-o", tmp_path / "out"]
    in_int8 = ["--precision", "int8", "--calibrate", tmp_path / "rows.npz"]
    run(*arguments, *in_int8)
    assert Bundle.open(tmp_path / "out").manifest.precision == "int8"
    run(*arguments, *in_int8, "--check")
    assert "checked" in capsys.readouterr().out
    with pytest.raises(InvalidInputError, match="right only for data like"):
        run(*arguments, "--check")


def test_an_engines_sizes_and_gpus_are_read(digits, tmp_path, monkeypatch):
    recorded = {}

    class Recorder:
        def __init__(self, model, **arguments):
            recorded.update(arguments)

        def export(self, path):
            recorded["path"] = path

    monkeypatch.setattr("keras_deepseek.deploy.exporter.Exporter", Recorder)
    digits.save(tmp_path / "digits.keras")
    run(
        tmp_path / "digits.keras",
        *("--format", "tensorrt", "-o", "out", "--flavor", "rtx"),
        *("--compute-capability", "86", "--compute-capability", "89"),
        *("--profile", "batch=1,4,32", "--profile", "tokens_axis_1=1,16,64"),
    )
    assert recorded["flavor"] == "rtx"
    assert recorded["compute_capabilities"] == ["86", "89"]
    assert recorded["profiles"] == {"batch": (1, 4, 32), "tokens_axis_1": (1, 16, 64)}
    assert "opset" not in recorded


@pytest.mark.parametrize(
    "flags", [("--flavor", "rtx"), ("--compute-capability", "89"), ("--profile", "batch=1,4,32")]
)
@pytest.mark.parametrize("form", ["onnx", "custom"])
def test_options_of_an_engine_are_of_engines_alone(tmp_path, form, flags):
    with pytest.raises(
        InvalidInputError, match=rf"--format {form} has no {flags[0]}\. .*--format tensorrt\."
    ):
        run("digits.keras", "--format", form, "-o", tmp_path / "out", *flags)


def test_a_custom_path_without_a_suffix_is_refused(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    dense.save(tmp_path / "dense.keras")
    with pytest.raises(InvalidInputError, match="no registered format writes 'foo'"):
        run(tmp_path / "dense.keras", "--format", "custom", "-o", tmp_path / "foo")


def test_formats_are_compared_and_nothing_is_kept(digits, tmp_path, capsys, tensorflow_installed):
    digits.save(tmp_path / "digits.keras")
    run(tmp_path / "digits.keras", "--benchmark", "--format", "savedmodel")
    stage, head, of_keras, of_format = capsys.readouterr().out.strip().splitlines()
    assert stage == "exporting and verifying savedmodel"
    assert head.startswith("ms (CPU ms)")
    assert (of_keras.split()[0], of_format.split()[0]) == ("keras", "savedmodel")
    assert [path.name for path in tmp_path.iterdir()] == ["digits.keras"]


def test_export_needs_a_format_and_an_output(digits, tmp_path):
    digits.save(tmp_path / "digits.keras")
    with pytest.raises(InvalidInputError, match="--format and --output"):
        run(tmp_path / "digits.keras", "--format", "onnx")


def test_benchmark_rejects_flags_it_would_ignore(digits, tmp_path):
    digits.save(tmp_path / "digits.keras")
    with pytest.raises(InvalidInputError, match="leave --precision, --opset out"):
        run(tmp_path / "digits.keras", "--benchmark", "--precision", "float16", "--opset", "20")
    flags = ["--compute-capability", "89", "--profile", "batch=1,4,32"]
    with pytest.raises(InvalidInputError, match="leave --compute-capability, --profile out"):
        run(tmp_path / "digits.keras", "--benchmark", *flags)

import argparse
import os

import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.deploy import command, registry


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([os.fspath(argument) for argument in arguments]))


def test_a_file_becomes_a_bundle(digits, tmp_path, tensorflow_installed):
    digits.save(tmp_path / "digits.keras")
    run(
        tmp_path / "digits.keras",
        *("--backend", "onnx", "--opset", "17", "--name", "numbers"),
        *("-o", tmp_path / "out"),
    )
    manifest = Bundle.open(tmp_path / "out").manifest
    assert (manifest.name, manifest.format) == ("numbers", "onnx")
    assert "opset 17" in manifest.route


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"No file at .*nothing\.keras"):
        run(tmp_path / "nothing.keras", "--backend", "onnx", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_backend_is_refused(digits, tmp_path):
    digits.save(tmp_path / "digits.keras")
    with pytest.raises(InvalidInputError, match="did you mean 'onnx'"):
        run(tmp_path / "digits.keras", "--backend", "onxx", "-o", tmp_path / "out")


def test_rows_of_a_file_calibrate_int8_and_an_artifact_is_checked(
    digits, tmp_path, capsys, tensorflow_installed
):
    digits.save(tmp_path / "digits.keras")
    np.savez(tmp_path / "rows.npz", image=np.random.default_rng(0).random((9, 8, 8, 1)))
    made = [tmp_path / "digits.keras", "--backend", "onnx", "-o", tmp_path / "out"]
    in_int8 = ["--precision", "int8", "--calibrate", tmp_path / "rows.npz"]
    run(*made, *in_int8)
    assert Bundle.open(tmp_path / "out").manifest.precision == "int8"
    run(*made, *in_int8, "--check")
    assert "checked" in capsys.readouterr().out
    with pytest.raises(InvalidInputError, match="for data like those"):
        run(*made, "--check")


def test_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "rows.npz", np.ones((2, 3)))
    assert command._load_rows(tmp_path / "rows.npz").shape == (2, 3)
    np.save(tmp_path / "rows.npy", np.ones((2, 3)))
    assert command._load_rows(tmp_path / "rows.npy").shape == (2, 3)
    np.savez(tmp_path / "rows.npz", a=np.ones(1), b=np.zeros(1))
    assert sorted(command._load_rows(tmp_path / "rows.npz")) == ["a", "b"]


@pytest.mark.parametrize("content", [None, b"", b"torn", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_file_without_arrays_is_named(tmp_path, content):
    path = tmp_path / "rows.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"No arrays can be read from .*rows\.npz"):
        command._load_rows(path)


def test_an_engines_sizes_and_gpus_are_read(digits, tmp_path, monkeypatch):
    made = {}

    class Recorder:
        def __init__(self, model, **arguments):
            made.update(arguments)

        def export(self, path):
            made["path"] = path

    monkeypatch.setattr("keras_deepseek.deploy.exporter.Exporter", Recorder)
    digits.save(tmp_path / "digits.keras")
    run(
        tmp_path / "digits.keras",
        *("--backend", "tensorrt", "-o", "out", "--flavor", "rtx"),
        *("--compute-capability", "86", "--compute-capability", "89"),
        *("--profile", "batch=1,4,32", "--profile", "tokens_axis_1=1,16,64"),
    )
    assert made["flavor"] == "rtx"
    assert made["compute_capabilities"] == ["86", "89"]
    assert made["profiles"] == {"batch": (1, 4, 32), "tokens_axis_1": (1, 16, 64)}
    assert "opset" not in made


@pytest.mark.parametrize("text", ["batch", "batch=", "batch=1,x,3"])
def test_sizes_that_can_not_be_read_are_shown(text):
    with pytest.raises(InvalidInputError, match=r"as in batch=1,4,32; received 'batch"):
        command._read_sizes(text)


@pytest.mark.parametrize(
    "given", [("--flavor", "rtx"), ("--compute-capability", "89"), ("--profile", "batch=1,4,32")]
)
@pytest.mark.parametrize("backend", ["onnx", "custom"])
def test_options_of_an_engine_are_of_engines_alone(tmp_path, backend, given):
    with pytest.raises(
        InvalidInputError, match=rf"^{given[0]}: of TensorRT .*--backend {backend} takes none"
    ):
        run("digits.keras", "--backend", backend, "-o", tmp_path / "out", *given)


def test_a_custom_path_without_a_suffix_is_refused(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    dense.save(tmp_path / "dense.keras")
    with pytest.raises(InvalidInputError, match=r"'custom' means .*none writes 'foo'.*openvino"):
        run(tmp_path / "dense.keras", "--backend", "custom", "-o", tmp_path / "foo")


def test_formats_are_compared_and_nothing_is_kept(digits, tmp_path, capsys, tensorflow_installed):
    digits.save(tmp_path / "digits.keras")
    run(tmp_path / "digits.keras", "--benchmark", "--backend", "savedmodel")
    *_, head, of_keras, of_format = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("ms (CPU ms)")
    assert (of_keras.split()[0], of_format.split()[0]) == ("keras", "savedmodel")
    assert [path.name for path in tmp_path.iterdir()] == ["digits.keras"]


def test_without_a_backend_or_an_output_both_are_asked_for(digits, tmp_path):
    digits.save(tmp_path / "digits.keras")
    with pytest.raises(InvalidInputError, match="--backend and --output"):
        run(tmp_path / "digits.keras", "--backend", "onnx")


def test_what_a_comparison_would_not_heed_is_refused(digits, tmp_path):
    digits.save(tmp_path / "digits.keras")
    with pytest.raises(InvalidInputError, match="leave --precision, --opset out"):
        run(tmp_path / "digits.keras", "--benchmark", "--precision", "float16", "--opset", "20")
    given = ["--compute-capability", "89", "--profile", "batch=1,4,32"]
    with pytest.raises(InvalidInputError, match="leave --compute-capability, --profile out"):
        run(tmp_path / "digits.keras", "--benchmark", *given)

import argparse
import os

import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.deploy import command


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
    np.savez(tmp_path / "rows.npz", a=np.ones(1), b=np.zeros(1))
    assert sorted(command._load_rows(tmp_path / "rows.npz")) == ["a", "b"]


@pytest.mark.parametrize("content", [None, b"torn", b"PK\x03\x04"])
def test_a_file_without_arrays_is_named(tmp_path, content):
    path = tmp_path / "rows.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"No arrays can be read from .*rows\.npz"):
        command._load_rows(path)

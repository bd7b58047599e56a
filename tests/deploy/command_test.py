import argparse
import os

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

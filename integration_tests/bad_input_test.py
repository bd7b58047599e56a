"""Input that can't be worked with: one line that helps, exit code 2, and nothing left behind."""

import shutil
import socket

import pytest


@pytest.fixture
def refuse_export(installation, tmp_path, assert_refused):
    def run(model, *words, backend="onnx"):
        out = tmp_path / "out" / "bundle"
        done = installation.run("keras-deepseek", "export", model, "--format", backend, "-o", out)
        assert_refused(done, "export", *words)
        assert not out.exists()

    return run


@pytest.fixture
def refuse_serve(installation, assert_refused):
    def run(*arguments, words):
        assert_refused(installation.run("keras-deepseek", "serve", *arguments), "serve", *words)

    return run


def test_a_model_that_is_missing(refuse_export, tmp_path):
    refuse_export(tmp_path / "missing.keras", "missing.keras")


def test_a_file_that_is_no_keras_file(refuse_export, tmp_path):
    path = tmp_path / "text.keras"
    path.write_text("not a model", encoding="utf-8")
    refuse_export(path, "text.keras")


def test_a_keras_file_that_is_cut_short(refuse_export, model_file, tmp_path):
    path = tmp_path / "short.keras"
    path.write_bytes(model_file.read_bytes()[:2000])
    refuse_export(path, "short.keras")


def test_a_backend_that_does_not_exist_names_the_nearest(refuse_export, model_file):
    refuse_export(model_file, "'onxx'", "did you mean 'onnx'?", backend="onxx")


def test_an_output_that_would_overwrite_something_else(
    installation, model_file, tmp_path, assert_refused
):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    done = installation.run(
        "keras-deepseek", "export", model_file, "--format", "onnx", "-o", tmp_path
    )
    assert_refused(done, "export", str(tmp_path), "not a bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_serving_what_is_missing(refuse_serve, tmp_path):
    refuse_serve(tmp_path / "nothing", words=["nothing"])


def test_serving_nothing(refuse_serve):
    refuse_serve(words=["PATH", "--model-config"])


def test_serving_a_folder_that_is_no_bundle(refuse_serve, tmp_path):
    refuse_serve(tmp_path, words=[str(tmp_path)])


def test_serving_a_bundle_that_was_tampered_with(refuse_serve, export, tmp_path):
    bundle = shutil.copytree(export("onnx"), tmp_path / "bundle")
    path = bundle / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuse_serve(bundle, words=["model.onnx", "altered"])


def test_serving_a_bundle_that_was_cut_short(refuse_serve, export, tmp_path):
    bundle = shutil.copytree(export("onnx"), tmp_path / "bundle")
    (bundle / "model.onnx").unlink()
    refuse_serve(bundle, words=["model.onnx", "missing"])


def test_a_port_that_is_taken(refuse_serve, export):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        refuse_serve(export("onnx"), "--http-port", port, words=[port, "another port"])


@pytest.mark.parametrize(
    ("flag", "value"), [("--batch-size", "many"), ("--max-batch-size", "0"), ("--name", "a/b")]
)
def test_a_value_that_no_engine_can_have(refuse_serve, export, flag, value):
    refuse_serve(export("onnx"), flag, value, words=[value])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["paint"], "'paint'"),
        (["export"], "MODEL.keras"),
        (["serve", "x", "--http-port", "eighty"], "'eighty'"),
        (["serve", "x", "--colour", "red"], "--colour"),
    ],
)
def test_arguments_that_the_parser_refuses(installation, arguments, words):
    done = installation.run("keras-deepseek", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: keras-deepseek")
    assert "error: " in done.stderr.splitlines()[-1]
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

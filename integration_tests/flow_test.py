"""From a `.keras` file to answers over HTTP, by the command line alone."""

import json
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration_tests.announced_process import announced_process

SECONDS = 120


@contextmanager
def serving(installation, path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yields the address of `keras-deepseek serve` and its process, ended on the way out."""
    program = installation.programs / "keras-deepseek"
    command = [program, "serve", path, "--name", "digits", "--http-port", "0"]
    folder, environment = installation.folder, installation.environment
    with announced_process(command, folder, environment, SECONDS) as (process, line):
        assert "http://" in line, process.stderr.read()
        yield "http://" + line.partition("http://")[2].split("/")[0], process


def ask(url: str, body: object = None) -> tuple[int, dict]:
    """Returns the status and the JSON of an answer; with a body it is a POST."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(url, data, timeout=SECONDS) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def expected(model_file):
    return json.loads(model_file.with_suffix(".json").read_text(encoding="utf-8"))


def assert_same(received: list, expected: list) -> None:
    assert len(received) == len(expected)
    for row, other in zip(received, expected, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_a_bundle_says_that_it_was_verified(export, backend):
    manifest = json.loads((export(backend) / "bundle.json").read_text(encoding="utf-8"))
    assert manifest["format"] == backend
    assert manifest["verification"]["state"] == "verified"
    assert [spec["name"] for spec in manifest["signature"]["inputs"]] == ["image"]


def test_an_export_to_a_suffix_is_the_one_file(installation, model_file):
    out = installation.folder / "digits.onnx"
    done = installation.run("keras-deepseek", "export", model_file, "--format", "onnx", "-o", out)
    assert done.returncode == 0, done.stderr
    assert out.is_file()


@pytest.mark.parametrize("kind", ["onnx", "savedmodel", "keras"])
def test_served_answers_are_those_of_the_model(installation, model_file, export, expected, kind):
    path = model_file if kind == "keras" else export(kind)
    with serving(installation, path) as (address, process):
        url = f"{address}/v1/models/digits"
        status, answer = ask(url)
        assert status == 200
        assert answer["model_version_status"][0]["state"] == "AVAILABLE"

        status, answer = ask(f"{url}:predict", {"instances": expected["instances"]})
        assert status == 200, answer
        assert_same(answer["predictions"], expected["predictions"])

        status, answer = ask(f"{url}:predict", {"inputs": {"image": expected["instances"]}})
        assert status == 200, answer
        assert_same(answer["outputs"], expected["predictions"])

        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


def test_a_request_that_does_not_fit_is_answered_with_the_reason(installation, export):
    with serving(installation, export("onnx")) as (address, _):
        url = f"{address}/v1/models/digits"
        status, answer = ask(f"{url}:predict", {"instances": [[1.0, 2.0]]})
        assert status == 400
        assert "image" in answer["error"]
        status, answer = ask(f"{address}/v1/models/other:predict", {"instances": []})
        assert status == 404
        assert "other" in answer["error"]


def test_serving_onnx_loads_no_framework(installation, export):
    with serving(installation, export("onnx")) as (_, process):
        maps = Path(f"/proc/{process.pid}/maps")
        if not maps.exists():
            pytest.skip("This system does not say which libraries a process has loaded.")
        loaded = maps.read_text(encoding="utf-8")
        assert "onnxruntime" in loaded
        assert "tensorflow" not in loaded


def test_ctrl_c_ends_the_server_as_well(installation, export):
    with serving(installation, export("onnx")) as (_, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) in (0, 130)
        assert "Traceback" not in process.stderr.read()

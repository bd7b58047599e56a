import argparse
import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import command

MAIN = """
import argparse
from keras_deepseek.inference import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
command.run(parser.parse_args())
"""


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_defaults_are_those_of_the_engine():
    arguments = vars(parse("model.keras"))
    assert arguments == {
        "path": "model.keras",
        "name": "model",
        "http_port": 8501,
        "host": "127.0.0.1",
        "batch_size": "dynamic",
        "max_batch_size": 32,
        "target_latency": None,
        "replicas": 1,
        "custom_objects_from": [],
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_answers_and_ends_with_0(bundle_of, number):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("httptools")
    path = str(bundle_of("onnx").path)
    call = [sys.executable, "-c", MAIN, path, "--name", "double", "--http-port", "0"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            line = child.stdout.readline()
            assert line.startswith("Serving 'double' at http://127.0.0.1:"), child.stderr.read()
            url = line.split()[-1] + ":predict"
            with urllib.request.urlopen(url, data=b'{"instances": [[1, 2]]}') as response:
                assert json.load(response) == {"predictions": [[2.0, 4.0]]}
            child.send_signal(number)
            rest, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, rest, errors) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.keras",), "it does not exist"),
        (("missing.keras", "--batch-size", "dynamc"), "did you mean 'dynamic'"),
        (("missing.keras", "--batch-size", "0"), "batch_size=0"),
        (("missing.keras", "--name", "a/b"), "part of the URL"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_signals_alone(arguments, message):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InvalidInputError, match=message):
        command.run(parse(*arguments))
    assert signal.getsignal(signal.SIGTERM) is before

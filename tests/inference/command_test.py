import argparse
import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ServingEngine, command

MAIN = """
import argparse
from keras_deepseek.inference import ServingEngine, command
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
        "grpc_port": None,
        "no_grpc": False,
        "host": "127.0.0.1",
        "batch_size": "dynamic",
        "max_batch_size": 32,
        "target_latency": None,
        "replicas": 1,
        "custom_objects_from": [],
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [("--grpc-port", "0"), ("--no-grpc",)])
def test_it_says_where_it_serves_answers_and_ends_with_0(bundle_of, number, arguments):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("httptools")
    if "--grpc-port" in arguments:
        pytest.importorskip("grpc")
    path = str(bundle_of("onnx").path)
    call = [sys.executable, "-c", MAIN, path, "--name", "double", "--http-port", "0", *arguments]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            line = child.stdout.readline()
            assert line.startswith("Serving 'double' at http://127.0.0.1:"), child.stderr.read()
            url, _, grpc_url = line.split(" at ")[1].strip().partition(" and ")
            body = b'{"instances": [[1, 2]]}'
            with urllib.request.urlopen(f"{url}:predict", data=body) as response:
                assert json.load(response) == {"predictions": [[2.0, 4.0]]}
            assert bool(grpc_url) == ("--grpc-port" in arguments)
            if grpc_url:
                assert is_healthy(grpc_url.removeprefix("grpc://"))
            child.send_signal(number)
            rest, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, rest, errors) == (0, "", "")


def is_healthy(target):
    import grpc

    with grpc.insecure_channel(target) as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)
    return answer == b"\x08\x01"


@pytest.mark.parametrize(
    ("arguments", "installed", "port"),
    [
        ((), ("grpc", "google", "google.protobuf"), 8500),
        ((), ("grpc", "google"), None),
        ((), ("google", "google.protobuf"), None),
        (("--no-grpc",), ("grpc", "google", "google.protobuf"), None),
        (("--grpc-port", "0"), ("grpc", "google", "google.protobuf"), 0),
        (("--grpc-port", "9000"), (), 9000),  # The server says what is missing.
    ],
)
def test_the_port_of_grpc_is_tf_serving_s_where_grpc_is_installed(
    monkeypatch, arguments, installed, port
):
    monkeypatch.setattr(command, "find_spec", lambda name: True if name in installed else None)
    assert command._grpc_port(parse("model.keras", *arguments)) == port


def test_the_line_says_what_grpc_needs_where_it_is_not_installed(doubler):
    pytest.importorskip("httptools")
    with ServingEngine(doubler) as engine:
        server = engine.serve(0)
        line = f"Serving 'model' at {server.url}/v1/models/model"
        assert command._describe(engine, no_grpc=True) == line
        missing = f"{line}; for gRPC: pip install 'keras_deepseek[grpc]'"
        assert command._describe(engine, no_grpc=False) == missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.keras",), "it does not exist"),
        (("missing.keras", "--batch-size", "dynamc"), "did you mean 'dynamic'"),
        (("missing.keras", "--batch-size", "0"), "batch_size=0"),
        (("missing.keras", "--name", "a/b"), "part of the URL"),
        (("missing.keras", "--no-grpc", "--grpc-port", "1"), "both --grpc-port and --no-grpc"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_signals_alone(arguments, message):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InvalidInputError, match=message):
        command.run(parse(*arguments))
    assert signal.getsignal(signal.SIGTERM) is before

import argparse
import contextlib
import http.client
import inspect
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from importlib import metadata

import pytest

from keras_deepseek import inference
from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.inference import ServingEngine, command
from keras_deepseek.inference.executors import runtimes

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


def test_the_defaults_in_the_help_are_those_of_the_engine():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    defaults = {
        name: parameter.default
        for call in (ServingEngine, ServingEngine.serve)
        for name, parameter in inspect.signature(call).parameters.items()
    }
    help_defaults = {
        action.dest: match[1]
        for action in parser._actions
        if (match := re.search(r"\(default: ([\w.]+)[),]", action.help))
        and defaults.get(action.dest) is not None
    }
    assert {name: str(defaults[name]).removesuffix(".0") for name in help_defaults} == help_defaults
    assert len(help_defaults) == 9


def test_an_address_where_nothing_can_listen_is_told_before_the_model_is_loaded():
    pytest.importorskip("grpc_reflection")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for words, advice in (
            (("--http-port", port), "Choose another port"),
            (("--http-port", "0", "--grpc-port", port), "Choose another port"),
            (("--http-port", "0", "--host", "192.0.2.1"), "Choose an address of this machine"),
        ):
            with pytest.raises(InvalidInputError, match=advice):
                command.run(parse("no_such_model.keras", *words))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m.keras", "--model-config", "models"), "not allowed with argument"),
        (("m.keras", "--replicas", "two"), "--replicas: invalid int value: 'two'"),
    ],
)
def test_what_the_parser_refuses_is_told_in_a_line_below_a_short_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.endswith("(PATH | --model-config FILE) [options]")
    assert message in error


def test_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse("--help")
    help_text = capsys.readouterr().out
    assert max(map(len, help_text.splitlines())) <= 80
    assert "--pad-lengths 16,32,64 --pad-value tokens=0 --pad-mask mask=tokens" in help_text


@contextlib.contextmanager
def serving(*arguments):
    """Runs the command; gives the child and the address of the model when it is served."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("uvicorn")
    call = [sys.executable, "-c", MAIN, *arguments, "--http-port", "0"]
    call += [] if "--model-config" in arguments else ["--name", "double"]
    call += [] if "--grpc-port" in arguments else ["--no-grpc"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            line = child.stdout.readline()
            assert line.startswith("Serving 'double'"), child.stderr.read()
            yield child, line.split(" at ")[1].strip()
        finally:
            child.kill()


def ask(url, context=None, **headers):
    request = urllib.request.Request(f"{url}:predict", b'{"instances": [[1, 2]]}', headers)
    with urllib.request.urlopen(request, timeout=60, context=context) as response:
        return json.load(response)


def is_healthy(target):
    import grpc

    with grpc.insecure_channel(target) as channel:
        return check_health(channel) == b"\x08\x01"


def check_health(channel):
    return channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("arguments", [("--grpc-port", "0"), ("--no-grpc",)])
def test_it_says_where_it_serves_answers_and_ends_with_0(bundle_of, number, arguments):
    if "--grpc-port" in arguments:
        pytest.importorskip("grpc")
    with serving(str(bundle_of("onnx").path), *arguments) as (child, urls):
        url, _, grpc_url = urls.partition(" and ")
        assert url.startswith("http://127.0.0.1:")
        assert ask(url) == {"predictions": [[2.0, 4.0]]}
        assert bool(grpc_url) == ("--grpc-port" in arguments)
        if grpc_url:
            assert is_healthy(grpc_url.removeprefix("grpc://"))
        child.send_signal(number)
        output, errors = child.communicate(timeout=60)
    assert (child.returncode, output, errors) == (0, "", "")


def test_tokens_certificates_and_the_access_log_are_those_of_the_options(
    bundle_of, certificates, tmp_path
):
    (tmp_path / "tokens").write_text("secret\n")
    files = {"certificate": "server.pem", "key": "server.key"}
    tls = [word for name, file in files.items() for word in (f"--tls-{name}", certificates / file)]
    options = (*tls, "--client-ca", certificates / "ca.pem", "--token-file", tmp_path / "tokens")
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    with serving(str(bundle_of("onnx").path), *map(str, options), "--access-log") as (child, url):
        assert url.startswith("https://")
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(url, context, Authorization="Bearer secret")
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(url, context)
        assert ask(url, context, Authorization="Bearer secret") == {"predictions": [[2.0, 4.0]]}
        child.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in child.communicate(timeout=60)[1].splitlines()]
    assert [line["status"] for line in lines] == [401, 200]


def test_grpc_speaks_tls_with_the_same_files(bundle_of, certificates):
    grpc = pytest.importorskip("grpc")
    tls = ("--tls-certificate", "server.pem", "--tls-key", "server.key", "--client-ca", "ca.pem")
    words = [word if word.startswith("-") else str(certificates / word) for word in tls]
    client_files = [
        (certificates / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem")
    ]
    with serving(str(bundle_of("onnx").path), *words, "--grpc-port", "0") as (_, urls):
        url, _, grpc_url = urls.partition(" and ")
        assert url.startswith("https://")
        assert grpc_url.startswith("grpcs://")
        target = grpc_url.removeprefix("grpcs://")
        with grpc.secure_channel(target, grpc.ssl_channel_credentials(*client_files)) as channel:
            assert check_health(channel) == b"\x08\x01"
        strangers = grpc.ssl_channel_credentials(client_files[0])
        with grpc.secure_channel(target, strangers) as channel, pytest.raises(grpc.RpcError):
            check_health(channel)


def test_the_models_of_a_file_of_tf_serving_s_are_served(bundle_of, tmp_path):
    pytest.importorskip("google.protobuf")
    bundle = bundle_of("onnx").path
    for version_path in ("one/1", "one/2", "two/1"):
        shutil.copytree(bundle, tmp_path / version_path)
    config, poll = tmp_path / "models.config", ("--model-config-poll", "0.01")
    config.write_text(
        f"""model_config_list {{
            config {{
                name: "double" base_path: "{tmp_path}/one" model_platform: "tensorflow"
                model_version_policy {{ all {{}} }}
                version_labels {{ key: "stable" value: 1 }}
            }}
            config {{ name: "other" base_path: "{tmp_path}/two" }}
        }}"""
    )
    with serving("--model-config", str(config), *poll) as (_, url):
        for path in ("double/versions/2", "double/labels/stable", "other"):
            assert ask(f"{url}/v1/models/{path}") == {"predictions": [[2.0, 4.0]]}
        other = tmp_path / "other.config"
        other.write_text(config.read_text().replace('"other"', '"renamed"'))
        other.replace(config)
        while not is_ready(f"{url}/v1/models/renamed"):
            pass
        assert ask(f"{url}/v1/models/renamed") == {"predictions": [[2.0, 4.0]]}


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
def test_a_terminal_shows_a_line_of_numbers(bundle_of):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("uvicorn")
    call = [
        sys.executable,
        "-c",
        MAIN,
        str(bundle_of("onnx").path),
        "--http-port",
        "0",
        "--no-grpc",
    ]
    outer, inner = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(call, stdout=inner, stderr=inner, env=environment) as child:
        os.close(inner)
        try:
            screen = b""
            while b"waiting" not in screen:
                screen += os.read(outer, 4096)
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
        finally:
            child.kill()
            os.close(outer)
    assert b"Serving 'model' at http://127.0.0.1:" in screen
    assert b"0 requests/s" in screen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Pass PATH or --model-config FILE; received neither"),
        (("missing.keras",), "it does not exist"),
        (("missing.keras", "--batch-size", "dynamc"), 'must be "dynamic" or an integer'),
        (("missing.keras", "--batch-size", "0"), "`batch_size` must be"),
        (("missing.keras", "--name", "a/b"), "part of the URL"),
        (("missing.keras", "--tls-key", "a.pem"), "without --tls-certificate"),
        (("missing.keras", "--no-grpc", "--grpc-port", "1"), "both --grpc-port and --no-grpc"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_signals_alone(arguments, message):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InvalidInputError, match=message):
        command.run(parse(*arguments))
    assert signal.getsignal(signal.SIGTERM) is handler


def test_packages_that_do_not_fit_are_named_before_a_model_is_loaded(monkeypatch):
    runtime = pytest.importorskip("google.protobuf.runtime_version")
    package = pytest.importorskip("grpc_health.v1")
    monkeypatch.setattr(runtime, "MAJOR", 5)  # Older than the generated code of all releases.
    for name in ("health_pb2", "health_pb2_grpc"):
        monkeypatch.delitem(sys.modules, f"grpc_health.v1.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    with pytest.raises(NotSupportedError) as refused:
        command.run(parse("missing.keras", "--grpc-port", "0"))
    health, protobuf = map(metadata.version, ("grpcio-health-checking", "protobuf"))
    message = str(refused.value)
    assert message.startswith(f"grpcio-health-checking {health} needs protobuf<")
    assert f"'keras_deepseek[grpc]' protobuf=={protobuf}" in message
    with pytest.raises(InvalidInputError, match="it does not exist"):
        command.run(parse("missing.keras", "--no-grpc"))


def is_ready(health):
    try:
        urllib.request.urlopen(health, timeout=60).close()
    except urllib.error.HTTPError as error:
        return error.code not in (404, 503)
    return True


def test_a_signal_makes_it_unready_and_the_next_one_ends_it(bundle_of):
    options = ("--no-grpc", "--limit", "unready_seconds=600")
    with serving(str(bundle_of("onnx").path), *options) as (child, url):
        health = f"{url.partition('/v1/')[0]}/healthz"
        child.send_signal(signal.SIGTERM)
        while is_ready(health):
            pass
        assert ask(url) == {"predictions": [[2.0, 4.0]]}
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_the_admin_port_is_open_before_the_model_is_loaded(monkeypatch, bundle_of):
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    statuses = []

    def load(*_arguments, **_options):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/live") as answer:
            statuses.append(answer.status)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz")
        raise KeyboardInterrupt

    monkeypatch.setattr(inference.engine, "ServingEngine", load)
    command.run(parse(str(bundle_of("onnx").path), "--admin-port", str(port), "--no-grpc"))
    assert statuses == [200]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/live")


def test_a_signal_that_an_import_makes_an_error_of_is_no_missing_package(monkeypatch, bundle_of):
    class Importer:
        """Meets the signal amid the import of the runtime, as pybind11's modules do."""

        @staticmethod
        def find_spec(name, _path=None, _target=None):
            if name != "onnxruntime":
                return
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt as error:
                raise ImportError("initialization failed") from error

    path = str(bundle_of("onnx").path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Importer, *sys.meta_path])
    command.run(parse(path))


def test_a_warm_up_that_fails_is_told_in_a_line_and_its_traceback_in_the_log(
    bundle_of, monkeypatch, caplog
):
    pytest.importorskip("uvicorn")
    pytest.importorskip("onnxruntime")

    def run(_runtime, inputs):
        if len(inputs["x"]) == 4:
            raise ArithmeticError("it is too large\nand more")
        return {"y": inputs["x"]}

    path = str(bundle_of("onnx").path)
    monkeypatch.setattr(runtimes.OnnxRuntime, "run", run)
    message = (
        r"^The warm-up of version 1 of the model 'double' failed with ArithmeticError: it is too "
        r"large\. A batch of 4 rows raised it\.$"
    )
    arguments = parse(path, "--name", "double", "--http-port", "0", "--no-grpc")
    with caplog.at_level(logging.DEBUG), pytest.raises(NotSupportedError, match=message):
        command.run(arguments)
    assert "and more" in caplog.text
    assert "Traceback" in caplog.text


def test_what_is_no_warm_up_is_raised_as_it_is(doubler):
    engine = ServingEngine(doubler)
    with pytest.raises(ZeroDivisionError), command._one_line_errors(engine):
        raise ZeroDivisionError


def test_a_warning_is_a_line_without_source():
    default_format = warnings.formatwarning
    with command._one_line_warnings():
        line = warnings.formatwarning("Beware.", UserWarning, "server.py", 1)
    assert line == "keras-deepseek serve: warning: Beware.\n"
    assert warnings.formatwarning is default_format


def test_requests_are_written(bundle_of, tmp_path):
    log = tmp_path / "requests"
    path = str(bundle_of("onnx").path)
    with serving(path, "--log-requests", str(log), "--sample", "1") as (child, url):
        ask(url)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    (entry,) = map(json.loads, log.read_text().splitlines())
    assert set(entry) == {"time", "model", "version", "inputs", "outputs"}


def test_the_line_says_what_grpc_needs_where_it_is_not_installed(doubler):
    pytest.importorskip("uvicorn")
    with ServingEngine(doubler) as engine:
        server = engine.serve(0)
        line = f"Serving 'model' at {server.url}/v1/models/model"
        assert command._describe(engine, no_grpc=True) == line
        missing = f"{line}; to serve gRPC: pip install 'keras_deepseek[grpc]'"
        assert command._describe(engine, no_grpc=False) == missing

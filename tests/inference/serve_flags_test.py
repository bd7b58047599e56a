import argparse
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference import HttpLimits, ModelOptions, Padding, ServerOptions, command
from keras_deepseek.inference.models import model_options
from keras_deepseek.inference.models.model_options import ModelKeywords
from keras_deepseek.inference.options import read_flags
from keras_deepseek.inference.server import server_options
from keras_deepseek.inference.server.server_options import ServerKeywords

GRPC = ("grpc", "grpc_health", "grpc_reflection", "google", "google.protobuf")
EVERYTHING = ("uvicorn", *GRPC)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Makes the settings see these packages alone: here, all that they look for."""

    def make(*names):
        for module in (command, server_options):
            monkeypatch.setattr(module, "find_spec", lambda name: name in names or None)

    make(*EVERYTHING)
    return make


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def read_engine(*arguments):
    return command.read_engine(parse("model.keras", *arguments))


def read_servers(*arguments):
    return command.read_servers(parse("model.keras", *arguments))


def test_without_flags_the_options_keep_their_defaults():
    assert command.read_model(parse("model.keras")) == "model.keras"
    assert ModelOptions(**read_engine("--threads", "1")) == ModelOptions(threads=1)
    assert read_servers("--no-grpc") == ServerOptions(limits=HttpLimits())


def test_origins_and_shared_memory_have_flags():
    flags = "--cors-origin", "https://a.example", "--cors-origin", "http://localhost:5173"
    options = read_servers(*flags, "--shared-memory")
    assert options.cors_origins == ("https://a.example", "http://localhost:5173")
    assert options.shared_memory


@pytest.mark.parametrize(
    ("options", "keywords"),
    [(ModelOptions, ModelKeywords), (ServerOptions, ServerKeywords)],
)
def test_each_option_is_a_keyword_and_has_a_flag(options, keywords):
    names = {option.name for option in fields(options)}
    assert names - {"http_port", "grpc_port"} == set(keywords.__annotations__)
    parsed = read_flags(options, parse("model.keras"))
    assert set(parsed) <= names
    assert all(option.metadata["flags"] or option.metadata["read"] for option in fields(options))


def test_flags_set_arguments_of_the_engine():
    words = "--name a --model-version 3 --batch-size 4 --max-wait 0.1 --max-queue-rows 9 --isolated"
    words += " --batch-timeout 2 --max-concurrent-batches 1 --no-warm-up --log-requests f"
    options = read_engine(*words.split(), "--sample", "0.5")
    expected = {
        "name": "a",
        "version": 3,
        "batch_size": 4,
        "max_wait": 0.1,
        "max_queue_rows": 9,
        "isolated": True,
        "batch_timeout": 2.0,
        "max_concurrent_batches": 1,
        "warm_up": False,
        "log_requests": "f",
        "sample": 0.5,
    }
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "padding"),
    [
        (
            "--pad-lengths 16,32 --pad-value tokens=0 --pad-mask by_value",
            Padding(lengths=[16, 32], values={"tokens": 0}, masks="by_value"),
        ),
        (
            "--pad-lengths 8 --pad-value a=-1.5 --pad-value b=1 --pad-mask m=a --pad-output y=b",
            Padding(lengths=[8], values={"a": -1.5, "b": 1}, masks={"m": "a"}, outputs={"y": "b"}),
        ),
    ],
)
def test_padding_is_read_from_pairs(words, padding):
    assert read_engine(*words.split())["padding"] == padding


def test_limits_are_those_of_a_connection():
    words = ("--limit", "idle_seconds=10", "--limit", "max_connections=2", "--max-body-bytes", "5")
    options = read_servers(*words)
    assert options.limits == HttpLimits(idle_seconds=10, max_connections=2)
    assert options.max_body_bytes == 5


def test_one_certificate_serves_both_ports(certificates, tmp_path):
    grpc = pytest.importorskip("grpc")
    key, certificate = (certificates / f"server.{suffix}" for suffix in ("key", "pem"))
    words = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    options = read_servers(*words)
    assert options.grpc_port == 8500
    assert options.ssl_context is not None
    assert isinstance(options.grpc_credentials, grpc.ServerCredentials)
    assert read_servers(*words, "--no-grpc").grpc_credentials is None


def test_the_missing_package_of_grpc_is_named(installed):
    installed("uvicorn", "grpc", "grpc_health", "google", "google.protobuf")
    with pytest.raises(MissingExtraError, match="`grpcio-reflection` is needed"):
        read_servers("--grpc-port", "9000")


@pytest.mark.parametrize(
    ("arguments", "names", "port"),
    [
        ((), EVERYTHING, 8500),
        ((), ("uvicorn", "grpc", "google"), None),
        ((), ("uvicorn", "google", "google.protobuf"), None),
        (("--no-grpc",), EVERYTHING, None),
        (("--grpc-port", "0"), EVERYTHING, 0),
    ],
)
def test_the_port_of_grpc_is_tf_serving_s_where_grpc_is_installed(
    installed, arguments, names, port
):
    installed(*names)
    assert read_servers(*arguments).grpc_port == port


@pytest.mark.parametrize(
    ("arguments", "names", "extra"),
    [
        (("--grpc-port", "9000"), ("uvicorn",), "grpc"),
        ((), ("grpc", "google", "google.protobuf"), "serving"),
    ],
)
def test_a_package_that_is_missing_is_told_before_a_model_is_loaded(
    installed, arguments, names, extra
):
    installed(*names)
    with pytest.raises(MissingExtraError, match=rf"keras_deepseek\[{extra}\]"):
        read_servers(*arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--no-grpc --grpc-port 1", "both --grpc-port and --no-grpc"),
        ("--sample 0.5", "Add --log-requests FILE"),
        ("--batch-timeout 5", "Add --isolated"),
        ("--max-wait 0.01", r"\(--batch-size N\)"),
        ("--pad-value x=0", "without --pad-lengths"),
        ("--pad-lengths 8 --pad-value x=0", "without --pad-mask"),
        ("--pad-lengths 8,4 --pad-mask by_value", "rising integers"),
        ("--pad-lengths 8;4 --pad-mask by_value", "'8;4' in --pad-lengths"),
        ("--pad-lengths 8 --pad-mask by_valu", "Received --pad-mask 'by_valu'"),
        ("--pad-lengths 8 --pad-mask m=x --pad-value x", "--pad-value 'x'. Expected NAME=VALUE"),
        ("--pad-lengths 8 --pad-mask m=x --pad-value x=a", "'a' in --pad-value"),
        ("--limit idle_second=3", "did you mean 'idle_seconds'"),
        ("--limit idle_seconds=0", "`idle_seconds` must be a finite number above 0, received 0"),
        ("--limit idle_seconds=1 --limit idle_seconds=2", "each name once"),
        ("--http-port 70000", "from 0 to 65535, received 70000"),
        ("--http-port 8500", "port 8500 for both"),
        ("--grpc-port -1", "from 0 to 65535, received -1"),
        ("--max-body-bytes 0", "`max_body_bytes` must be a positive integer"),
        ("--token-file nothing", "Can't read the tokens in 'nothing'"),
        ("--tls-key key.pem", "--tls-key without --tls-certificate. Add"),
        ("--client-ca ca.pem", "--client-ca without --tls-certificate. Add"),
        ("--tls-certificate nothing", "Can't use the certificate 'nothing'"),
    ],
)
def test_wrong_flags_are_refused_before_a_model_is_loaded(words, message):
    with pytest.raises(InvalidInputError, match=message):
        (read_engine(*words.split()), read_servers(*words.split()))


@pytest.mark.parametrize("flag", ["--name", "--model-version"])
def test_models_of_a_file_have_their_own_names_and_versions(flag):
    with pytest.raises(InvalidInputError, match=f"Received {flag} with --model-config"):
        command.read_model(parse("--model-config", "models", flag, "1"))


def test_a_file_that_is_read_again_must_be_named():
    with pytest.raises(InvalidInputError, match="--model-config-poll without --model-config"):
        command.read_model(parse("model.keras", "--model-config-poll", "1"))


def test_a_folder_of_versions_names_them(tmp_path):
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "model.onnx").touch()
    with pytest.raises(InvalidInputError, match=r"folder of versions\. Remove it"):
        command.read_model(parse(str(tmp_path), "--model-version", "1"))


def test_reading_loads_no_framework():
    pytest.importorskip("uvicorn")
    code = "import argparse, sys\n"
    code += "from keras_deepseek.inference import command\n"
    code += "parser = argparse.ArgumentParser()\ncommand.add_arguments(parser)\n"
    code += "assert 'numpy' not in sys.modules\n"
    code += "arguments = parser.parse_args(['model.keras', '--no-grpc'])\n"
    code += "command.read_engine(arguments), command.read_servers(arguments)\n"
    code += "loaded = {'keras', 'tensorflow', 'jax', 'torch', 'onnxruntime'} & set(sys.modules)\n"
    code += "assert not loaded, loaded"
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2]
    )


@pytest.mark.parametrize(
    ("words", "limit", "threads"),
    [
        ((), 64, None),
        ((), 6, 6),
        (("--replicas", "4"), 6, 1),
        (("--threads", "3", "--replicas", "4"), 6, 3),
    ],
)
def test_the_threads_are_those_of_the_flag_or_of_the_container(monkeypatch, words, limit, threads):
    monkeypatch.setattr(model_options.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(model_options, "find_cpu_limit", lambda: limit)
    assert read_engine(*words).get("threads") == threads


def test_a_number_of_threads_below_1_is_refused():
    with pytest.raises(InvalidInputError, match="`--threads` must be a positive integer"):
        read_engine("--threads", "0")

import gc
import http.client
import inspect
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import HttpLimits, ModelOptions, ServingEngine
from keras_deepseek.inference.server.server import COLLECTION_OBJECTS
from keras_deepseek.inference.server.termination import Interruption


def test_a_blocking_server_returns_when_the_engine_closes(doubler, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    waits, wait = threading.Event(), Interruption.wait
    monkeypatch.setattr(Interruption, "wait", lambda self, event: (waits.set(), wait(self, event)))
    engine = ServingEngine(doubler)
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(engine.serve, 0, block=True)
        assert waits.wait(60)
        url = f"{engine.servers[0].url}/v1/models/model"
        assert capsys.readouterr().out == f"Serving 'model' at {url}\n"
        assert not served.done()
        engine.close()
        assert not served.result(timeout=60).ready


@pytest.fixture
def pythons_thresholds():
    thresholds_of_tests = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*thresholds_of_tests)


@pytest.mark.usefixtures("pythons_thresholds")
def test_ctrl_c_ends_a_blocking_server(doubler, monkeypatch):
    pytest.importorskip("uvicorn")

    thresholds = [gc.get_threshold()]

    def interrupted_wait(_self, _event):
        thresholds.append(gc.get_threshold())
        raise KeyboardInterrupt

    monkeypatch.setattr(Interruption, "wait", interrupted_wait)
    with ServingEngine(doubler) as engine:
        assert not engine.serve(0, block=True).ready
        assert engine.ready
    usual, serving = thresholds
    assert serving == (COLLECTION_OBJECTS, *usual[1:])
    assert gc.get_threshold() == usual


SERVES = """
import sys
from keras_deepseek.inference import ServingEngine
from tests.inference.conftest import Doubler

class Told(Doubler):
    def run(self, inputs):
        print("runs", flush=True)
        sys.stdin.readline()
        return super().run(inputs)

ServingEngine(Told(), warm_up=False).serve(0, block=True)
print("over")
"""


def is_open(host, port):
    try:
        socket.create_connection((host, port)).close()
    except ConnectionError:  # It may have been let in by the kernel alone, and is reset.
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_blocking_server_when_it_has_answered(number):
    pytest.importorskip("uvicorn")
    pipe = subprocess.PIPE
    call = [sys.executable, "-c", SERVES]
    folder = Path(__file__).parents[2]
    with subprocess.Popen(call, cwd=folder, stdin=pipe, stdout=pipe, text=True) as child:
        try:
            url = urllib.parse.urlsplit(child.stdout.readline().split(" at ")[1].strip())
            connection = http.client.HTTPConnection(url.hostname, url.port)
            connection.request("POST", f"{url.path}:predict", '{"instances": [[1, 2]]}')
            assert child.stdout.readline() == "runs\n"
            child.send_signal(number)
            while is_open(connection.host, connection.port):
                pass
            print(file=child.stdin, flush=True)
            assert json.load(connection.getresponse()) == {"predictions": [[2.0, 4.0]]}
            connection.close()
            output, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    assert output.splitlines()[-1] == "over"
    assert child.returncode == 0


UNREADY = """
from keras_deepseek.inference import HttpLimits, ModelOptions, ServingEngine
from tests.inference.conftest import Doubler

limits = HttpLimits(unready_seconds=600)
ServingEngine(Doubler(), warm_up=False).serve(0, 0, block=True, limits=limits)
"""


def test_after_a_signal_only_readiness_fails_until_the_next_signal():
    pytest.importorskip("uvicorn")
    grpc = pytest.importorskip("grpc")
    call = [sys.executable, "-c", UNREADY]
    folder = Path(__file__).parents[2]
    with subprocess.Popen(call, cwd=folder, stdout=subprocess.PIPE, text=True) as child:
        try:
            urls = child.stdout.readline().split(" at ")[1].split(" and ")
            url = urllib.parse.urlsplit(urls[0])

            def ask(method, path, body=None):
                connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
                connection.request(method, path, body)
                status = connection.getresponse().status
                connection.close()
                return status

            with grpc.insecure_channel(urllib.parse.urlsplit(urls[1].strip()).netloc) as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                assert ask("GET", "/v2/health/ready") == 200
                assert check(b"", timeout=60) == b"\x08\x01"
                child.send_signal(signal.SIGTERM)
                while ask("GET", "/v2/health/ready") == 200:
                    pass
                assert check(b"", timeout=60) == b"\x08\x02"
            assert ask("GET", "/v2/health/live") == 200
            assert ask("POST", f"{url.path}:predict", '{"instances": [[1, 2]]}') == 200
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"grpc_port": 0, "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
            "for one port only",
        ),
        ({"grpc_credentials": object()}, "without `grpc_port`"),
        ({"http_port": 8500, "grpc_port": 8500}, "port 8500 for both"),
        ({"block": "yes"}, "`block` must be True or False"),
    ],
)
def test_options_of_servers_that_do_not_fit_are_refused(doubler, options, message):
    engine = ServingEngine(doubler)
    with pytest.raises(InvalidInputError, match=message):
        engine.serve(**options)
    assert not engine.servers


def test_limits_are_those_of_both_servers(doubler):
    pytest.importorskip("grpc")
    limits = HttpLimits(settle_seconds=0.01, grace_seconds=5, connection_seconds=60)
    with ServingEngine(doubler, warm_up=False) as engine:
        engine.serve(0, 0, max_body_bytes=1000, limits=limits)
        http, grpc = engine.servers
    for service in (http.service, grpc.service):
        assert (service.limits, service.options.max_body_bytes) == (limits, 1000)


def test_an_application_refuses_the_options_of_a_port(doubler):
    engine = ServingEngine(doubler)
    with pytest.raises(InvalidInputError, match="Unknown option of `asgi_app` 'admin_port'"):
        engine.asgi_app(admin_port=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda engine: engine.serve(http_prot=0),
            "Unknown option of `serve` 'http_prot': did you mean 'http_port'",
        ),
        (
            lambda engine: engine.serve(max_batch_size=8),
            "Unknown option of `serve` 'max_batch_size': it is an option of `ServingEngine`",
        ),
        (lambda engine: ServingEngine(engine, batchsize=3), "did you mean 'batch_size'"),
        (lambda engine: ServingEngine(engine, host="::1"), "it is an option of `serve`"),
        (
            lambda engine: ModelOptions(max_batchsize=3),
            "Unknown option of `ModelOptions` 'max_batchsize': did you mean 'max_batch_size'",
        ),
        (lambda engine: HttpLimits(idle_second=3), "did you mean 'idle_seconds'"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_or_its_place(doubler, call, message):
    with pytest.raises(InvalidInputError, match=message):
        call(ServingEngine(doubler))


def test_signatures_show_each_option_with_its_default():
    parameters = inspect.signature(ServingEngine.serve).parameters
    assert (parameters["host"].default, parameters["limits"].default) == ("127.0.0.1", None)
    assert "options" not in parameters
    assert "admin_port" not in inspect.signature(ServingEngine.asgi_app).parameters
    assert inspect.signature(ServingEngine).parameters["batch_timeout"].default == 60.0

import http.client
import json
import socket
import sys

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.server.admin_server import AdminServer


@pytest.fixture
def admin():
    admin = AdminServer("127.0.0.1", 0)
    admin.start()
    yield admin
    admin.stop()


def ask(admin, path, method="GET"):
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def test_before_there_is_an_engine_it_lives_is_not_ready_and_has_the_process(admin):
    assert ask(admin, "/v2/health/live") == (200, '{"live":true}')
    assert ask(admin, "/v2/health/ready") == (503, '{"ready":false}')
    assert ask(admin, "/healthz")[0] == 503
    pytest.importorskip("prometheus_client")
    for path in ("/metrics", "/monitoring/prometheus/metrics"):
        status, text = ask(admin, path)
        assert (status, "keras_deepseek" in text) == (200, False)
    if sys.platform == "linux":
        names = {line.split(" ")[0] for line in text.splitlines()}
        assert {"process_open_fds", "process_start_time_seconds"} <= names
        assert {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= names


def test_it_is_ready_as_long_as_all_servers_are(admin, doubler):
    pytest.importorskip("uvicorn")
    with ServingEngine(doubler) as engine:
        admin.engine = engine
        assert ask(admin, "/healthz")[0] == 503
        server = engine.serve(0)
        for path in ("/healthz", "/v2/health/ready"):
            assert ask(admin, path) == ask(server, path)
        server.announce_unready()
        for path in ("/healthz", "/v2/health/ready"):
            (status, body), other = ask(admin, path), ask(server, path)
            assert (status, json.loads(body)) == (503, json.loads(other[1]))


def test_it_has_nothing_else(admin):
    status, body = ask(admin, "/v1/models/model:predict")
    assert (status, "/healthz" in json.loads(body)["error"]) == (404, True)
    for method in ("POST", "DELETE"):
        status, body = ask(admin, "/healthz", method)
        assert (status, json.loads(body)["error"].startswith("Use GET.")) == (405, True)
    assert ask(admin, "/v2/health/live", "HEAD") == (200, "")
    with socket.create_connection((admin.host, admin.port)) as connection:
        connection.sendall(b"\x00" * 100 + b"\r\n\r\n")
        answer = connection.makefile("rb").read()
        assert (b"400" in answer, b"<html" in answer.lower()) == (True, False)


def test_clients_beyond_the_limit_are_hung_up_on(admin):
    silent = [socket.create_connection((admin.host, admin.port)) for _ in range(64)]
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(admin, "/v2/health/live")
    for connection in silent:
        connection.close()


def test_a_taken_port_is_refused(admin):
    with pytest.raises(InvalidInputError, match=f"on port {admin.port}: .*in use"):
        AdminServer("127.0.0.1", admin.port).start()


def test_an_engine_s_own_admin_port_is_open_while_its_model_warms_up(doubler):
    pytest.importorskip("uvicorn")
    engine, statuses = ServingEngine(doubler), []
    start = engine.start
    engine.start = lambda: (statuses.append(ask(engine._admin_servers[0], "/healthz")[0]), start())
    engine.serve(0, admin_port=0)
    (admin,) = engine._admin_servers
    assert (statuses, ask(admin, "/healthz")[0]) == ([503], 200)
    engine.close()
    with pytest.raises(ConnectionError):
        ask(admin, "/healthz")


def test_two_servers_on_one_port_are_refused(doubler):
    with pytest.raises(InvalidInputError, match="port 8501 for both `http_port` and `admin_port`"):
        ServingEngine(doubler).serve(admin_port=8501)

import contextlib
import http.client
import socket
import subprocess
import sys

import pytest

from keras_deepseek.inference.process_limits import most_connections

resource = pytest.importorskip("resource")

RAISES = """
import resource, sys
from keras_deepseek.inference.process_limits import most_connections, raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
print(most_connections(4096, 2), most_connections(10, 2))
raise_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_is_raised_as_far_as_it_may_be_and_connections_fit_in_it():
    answer = subprocess.check_output([sys.executable, "-c", RAISES], text=True)
    assert answer.splitlines() == ["64 10", "(512, 512)"]


def test_without_a_limit_all_connections_are_allowed(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert most_connections(10**6, 1) == 10**6


SERVES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from keras_deepseek.inference import ServingEngine
from tests.oracles.served_process import Double
with ServingEngine(Double()) as engine:
    print(engine.serve(0, admin_port=0).port, engine._admin_servers[0].port, flush=True)
    sys.stdin.read()
"""


def ask(connection):
    connection.request("GET", "/v2/health/live")
    return connection.getresponse().read()


def test_idle_connections_leave_files_for_health_checks():
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-c", SERVES]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        contextlib.ExitStack() as stack,
    ):
        port, admin_port = map(int, process.stdout.readline().split())
        first = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        assert ask(first) == b'{"live":true}'
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        assert ask(http.client.HTTPConnection("127.0.0.1", admin_port, timeout=60))
        assert ask(first) == b'{"live":true}'
        with socket.create_connection(("127.0.0.1", port), timeout=60) as late:
            assert late.recv(1) in (b"H", b"")  # It is told, or hung up on, and does not wait.
        first.close()
        process.stdin.close()

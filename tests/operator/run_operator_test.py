"""The start of the operator where there is no cluster. The nightly tests run it on a real one."""

import socket
from types import SimpleNamespace

import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.operator import run_operator as run_module
from keras_deepseek.operator.plan import Settings
from keras_deepseek.operator.run_operator import run_operator

CONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: a, user: {}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
"""


def test_without_credentials(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NotSupportedError, match="Set KUBECONFIG, or run in a cluster"):
        run_operator(Settings("serving:1"))


def test_api_server_that_is_not_there(monkeypatch, tmp_path):
    file = tmp_path / "config"
    file.write_text(CONFIG)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(NotSupportedError, match=r"http://127.0.0.1:9 does not answer"):
        run_operator(Settings("serving:1"))


@pytest.mark.parametrize(
    "text", ["hello", "a: [b", CONFIG.replace("current-context: a", "current-context: b")]
)
def test_a_file_that_is_no_kubeconfig(monkeypatch, tmp_path, text):
    file = tmp_path / "config"
    file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(NotSupportedError, match="KUBECONFIG's file can't be used"):
        run_operator(Settings("serving:1"))


@pytest.mark.parametrize("url", ["0.0.0.0:8080", "https://0.0.0.0/healthz", "http:///healthz"])
def test_liveness_that_is_no_url(url):
    with pytest.raises(InvalidInputError, match="--liveness must be"):
        run_operator(Settings("serving:1"), url)


def test_liveness_at_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/healthz"
        with pytest.raises(InvalidInputError, match="Can't answer at"):
            run_operator(Settings("serving:1"), url)


def test_end_of_the_workers_ends_the_operator(monkeypatch):
    """Else the liveness probe would be answered, and nothing be done."""

    async def nothing():
        pass

    async def connect():
        return SimpleNamespace(server="http://127.0.0.1:9", close=nothing)

    async def find_no_kinds(_):
        return set()

    async def fail(_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(run_module, "_connect", connect)
    monkeypatch.setattr(run_module, "_wait_for_kinds", find_no_kinds)
    monkeypatch.setattr(run_module.Reconciler, "run", fail)
    with pytest.raises(ExceptionGroup) as caught:
        run_operator(Settings("serving:1"))
    assert caught.group_contains(RuntimeError, match="a fault")

import importlib
import types

import pytest

from keras_deepseek.inference.grpc.span_names import name_grpc
from keras_deepseek.inference.http.message import HttpRequest
from keras_deepseek.inference.http.span_names import name_http

SERVER = types.SimpleNamespace(url="https://[::1]:8501", host="::1", port=8501)


def conventions():
    """Returns the names of attributes in OpenTelemetry's own package of them."""
    names = ("client", "error", "http", "network", "server", "url", "user_agent")
    modules = [f"attributes.{name}_attributes" for name in names]
    return {
        value
        for module in (*modules, "_incubating.attributes.rpc_attributes")
        for value in vars(importlib.import_module(f"opentelemetry.semconv.{module}")).values()
        if isinstance(value, str)
    }


def test_the_names_are_those_of_the_conventions():
    pytest.importorskip("opentelemetry.semconv", reason="opentelemetry-sdk is not installed")
    request = HttpRequest("PURGE", "/made-up", headers={"user-agent": "me"})
    used = {
        *name_http(SERVER, request, 500, "/a").attributes,
        *name_http(SERVER, request, 499, "").attributes,
        *name_grpc(SERVER, "/a/b", "INTERNAL", "::1").attributes,
    }
    assert len(used) == 15
    assert used - conventions() == set()

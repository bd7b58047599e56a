import io
import json
import sys
import types

import pytest

from keras_deepseek.inference.grpc.answers import (
    address_of,
    begin_call,
    end_request,
    name_grpc,
)
from keras_deepseek.inference.monitoring.access_log import AccessLog
from keras_deepseek.inference.monitoring.engine_monitor import EngineMonitor
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from tests.inference.monitoring.access_log_test import untouched_logger

PATH = "/inference.GRPCInferenceService/ModelInfer"


class Context:
    """What gRPC gives to a call."""

    def __init__(self, *metadata):
        self.metadata = metadata
        self.trailing = ()

    def invocation_metadata(self):
        return self.metadata

    def set_trailing_metadata(self, metadata):
        self.trailing = metadata

    def peer(self):
        return "ipv6:%5B::1%5D:51234"


def make_service(**parts):
    engine = types.SimpleNamespace(monitor=EngineMonitor())
    options = types.SimpleNamespace(shared_memory=False)
    parts = {"access_log": None, "traces": None, "options": options, **parts}
    return types.SimpleNamespace(engine=engine, **parts)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:51234", "10.0.0.7"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("unix:/run/socket", "/run/socket"),
        ("unknown", "unknown"),
    ],
)
def test_the_address_is_the_peer_s_without_its_port(peer, address):
    assert address_of(peer) == address


def test_a_call_is_counted_and_has_no_id_where_none_is_asked_for():
    service, context, trace = make_service(), Context(("x-request-id", "1")), RequestTrace("g", "c")
    begin_call(service, context, trace)
    end_request(service, context, trace, PATH, "OK", 5)
    assert (trace.request_id, context.trailing) == ("", ())
    assert service.engine.monitor.answers() == {(("", "", "g", "c"), "OK"): 1}


def test_a_call_is_logged_with_its_id_and_its_peer(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with untouched_logger():
        service = make_service(access_log=AccessLog())
        for metadata in ((("a", "b"), ("x-request-id", "mine")), (("x-request-id", "two words"),)):
            context, trace = Context(*metadata), RequestTrace("open_inference_grpc", "ModelInfer")
            begin_call(service, context, trace)
            end_request(service, context, trace, PATH, "NOT_FOUND", 5)
            assert context.trailing == (("x-request-id", trace.request_id),)
        service.access_log.close()
    first, second = map(json.loads, sys.stderr.getvalue().splitlines())
    expected = {
        "protocol": "open_inference_grpc",
        "path": PATH,
        "status": "NOT_FOUND",
        "bytes": 5,
        "client": "::1",
        "request_id": "mine",
    }
    assert {key: first[key] for key in expected} == expected
    assert second["request_id"] == trace.request_id != "two words"


SERVICE = types.SimpleNamespace(address=("::1", 8501))


@pytest.mark.parametrize(
    ("status", "has_failed"),
    [
        ("OK", False), ("NOT_FOUND", False), ("CANCELLED", False), ("RESOURCE_EXHAUSTED", False),
        ("INTERNAL", True), ("UNAVAILABLE", True), ("DEADLINE_EXCEEDED", True),
    ],
)  # fmt: skip
def test_a_status_of_grpc_is_an_error_where_it_is_the_server_s(status, has_failed):
    names = name_grpc(SERVICE, "/grpc.health.v1.Health/Check", status, "10.0.0.7")
    assert (names.name, names.has_failed) == ("grpc.health.v1.Health/Check", has_failed)
    assert names.attributes.get("error.type") == (status if has_failed else None)

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols.health_grpc import HEALTH, format_status, parse_check

pytest.importorskip("google.protobuf", reason="protobuf is not installed")


def test_the_bytes_are_those_of_the_protocol():
    assert parse_check(b"") == ""
    assert parse_check(b"\x0a\x03abc") == "abc"
    assert format_status("SERVING") == b"\x08\x01"
    assert format_status("NOT_SERVING") == b"\x08\x02"
    assert format_status("SERVICE_UNKNOWN") == b"\x08\x03"


def test_what_is_no_message_is_refused():
    with pytest.raises(InvalidInputError, match="HealthCheckRequest"):
        parse_check(b"\xff")


def test_a_watch_answers_with_a_stream():
    watch = HEALTH.pool.FindServiceByName("grpc.health.v1.Health").FindMethodByName("Watch")
    assert (watch.client_streaming, watch.server_streaming) == (False, True)

import types

import pytest

from keras_deepseek.inference.grpc.span_names import name_grpc

SERVER = types.SimpleNamespace(url="https://[::1]:8501", host="::1", port=8501)


@pytest.mark.parametrize(
    ("status", "has_failed"),
    [
        ("OK", False), ("NOT_FOUND", False), ("CANCELLED", False), ("RESOURCE_EXHAUSTED", False),
        ("INTERNAL", True), ("UNAVAILABLE", True), ("DEADLINE_EXCEEDED", True),
    ],
)  # fmt: skip
def test_a_status_of_grpc_is_an_error_where_it_is_the_server_s(status, has_failed):
    names = name_grpc(SERVER, "/grpc.health.v1.Health/Check", status, "10.0.0.7")
    assert (names.name, names.has_failed) == ("grpc.health.v1.Health/Check", has_failed)
    assert names.attributes.get("error.type") == (status if has_failed else None)

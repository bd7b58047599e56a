import pytest

from tests.oracles.protocols import read_descriptors

pytest.importorskip("grpc", reason="grpcio is not installed")


def test_every_method_of_the_proto_files_has_a_call_of_its_kind():
    from keras_deepseek.inference.grpc.grpc_application import SERVICES

    described = {
        f"{file.package}.{service.name}/{method.name}": (
            method.client_streaming,
            method.server_streaming,
        )
        for file in read_descriptors().file
        for service in file.service
        for method in service.method
        if file.package != "grpc.health.v1"  # The official package answers these.
    }
    answered = {
        f"{service.name}/{name}": kind
        for service in SERVICES
        for calls, kind in (
            (service.unary_calls, (False, False)),
            (service.stream_calls, (True, True)),
        )
        for name in calls
    }
    assert answered == described

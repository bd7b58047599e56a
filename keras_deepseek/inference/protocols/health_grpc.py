"""gRPC's own health protocol: what load balancers and `grpc_health_probe` ask every server.

Bytes in, bytes out, as in `tf_serving_grpc`.
"""

from keras_deepseek.inference.protocols.messages import Protocol

_PACKAGE = "grpc.health.v1."

HEALTH = Protocol(
    packages={
        "grpc.health.v1": {
            "HealthCheckRequest": "service 1 string",
            "HealthCheckResponse": "status 1 ServingStatus",
            "HealthCheckResponse.ServingStatus": {
                "UNKNOWN": 0,
                "SERVING": 1,
                "NOT_SERVING": 2,
                "SERVICE_UNKNOWN": 3,
            },
        }
    },
    services={
        "grpc.health.v1.Health": {
            "Check": ("HealthCheckRequest", "HealthCheckResponse"),
            "Watch": ("HealthCheckRequest", "stream HealthCheckResponse"),
        }
    },
)
"""The health protocol over gRPC."""


def parse_check(data: bytes) -> str:
    """Returns the service that a `HealthCheckRequest` asks about; empty for the whole server.

    Args:
        data: bytes. The message.

    Raises:
        InvalidInputError: It is no such message.
    """
    service: str = HEALTH.parse(_PACKAGE + "HealthCheckRequest", data).service
    return service


def format_status(status: str) -> bytes:
    """Returns the `HealthCheckResponse`.

    Args:
        status: string. `"SERVING"`, `"NOT_SERVING"` or `"SERVICE_UNKNOWN"`.
    """
    data: bytes = HEALTH.new(_PACKAGE + "HealthCheckResponse", status=status).SerializeToString()
    return data

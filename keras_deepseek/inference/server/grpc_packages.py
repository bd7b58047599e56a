"""The packages of the extra `grpc`: which of them is missing, or does not fit the others."""

import importlib
from importlib import metadata

from keras_deepseek.errors import MissingExtraError, NotSupportedError

GRPC_PACKAGES = {
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "google": "protobuf",  # `find_spec` of a name with a dot needs the parent package.
    "google.protobuf": "protobuf",
}
"""The packages of the extra `grpc`, by what is imported."""

_MODULES = (
    "google.protobuf.message",
    "grpc.aio",
    # Their generated code refuses older versions of protobuf and grpcio than it was made for.
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha.reflection_pb2_grpc",
)


def check_grpc_packages() -> None:
    """Imports what a gRPC server needs, before models are loaded.

    Raises:
        MissingExtraError: A package is not installed.
        NotSupportedError: A package needs another version of protobuf or grpcio.
    """
    for name in _MODULES:
        package = GRPC_PACKAGES[name.partition(".")[0]]
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing = GRPC_PACKAGES.get((error.name or "").partition(".")[0], package)
            raise MissingExtraError(missing, "grpc", "to serve over gRPC") from error
        except Exception as error:
            needs = [text for text in metadata.requires(package) or () if ";" not in text]
            protobuf, grpcio = map(metadata.version, ("protobuf", "grpcio"))
            raise NotSupportedError(
                f"{package} {metadata.version(package)} needs {' and '.join(needs)}, and protobuf "
                f"{protobuf} and grpcio {grpcio} are installed. Run pip install "
                f"'keras_deepseek[grpc]' protobuf=={protobuf}, by which pip chooses one that fits, "
                "or serve over HTTP alone (--no-grpc, grpc_port=None)."
            ) from error

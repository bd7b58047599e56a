"""Compiles the .proto files of the gRPC protocols into one descriptor set.

Run it after a change of `keras_deepseek/inference/protocols/proto/*.proto`, and commit the result.
It needs `pip install grpcio-tools`.

    python .ci/compile_protos.py [DESCRIPTORS.binpb]
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "keras_deepseek/inference/protocols/proto"


def compile_protos(path: str | Path) -> None:
    """Writes the descriptors of all messages and services, without comments."""
    from grpc_tools import protoc

    includes = (FOLDER, Path(protoc.__file__).with_name("_proto"))
    arguments = [
        *("protoc", *(f"-I{folder}" for folder in includes), f"--descriptor_set_out={path}"),
        *(file.name for file in sorted(FOLDER.glob("*.proto"))),
    ]
    if protoc.main(arguments):
        sys.exit("protoc failed; its messages are above.")


if __name__ == "__main__":
    compile_protos(sys.argv[1] if len(sys.argv) > 1 else FOLDER / "descriptors.binpb")

"""Claim: a log line for each request costs a fraction of the request; what a trace costs is said.

32 clients, each on a connection of its own, ask for one row over HTTP, and over gRPC where grpcio
is installed, of a model that costs nothing; the client is a process of its own. What is told is the
processor time of the server's process for one request, in four ways: nothing noted, an access log
(standard error goes to a file), traces that nobody samples, and traces that are all exported (to an
exporter that drops them). Rounds alternate, so that other load on the machine meets all of them.
Traces need opentelemetry-sdk and are left out without it. Prints a table and writes the numbers as
JSON:

    python benchmarks/request_notes.py [--json RESULT.json]
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from typing import Any

from processes import make_parser
from result import Figure, report

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import (
    GrpcServer,
    HttpServer,
    ServerOptions,
    Service,
    ServingEngine,
)

REQUESTS, CLIENTS = 4000, 32
BODY = b'{"instances": [[1, 2, 3, 4]]}'
HEAD = b"POST /v1/models/model:predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(
    BODY
)
METHOD = "/tensorflow.serving.PredictionService/Predict"
KINDS = ("nothing noted", "access log", "traces, none sampled", "traces, all exported")


class Identity:
    """A model that costs nothing."""

    signature = Signature(
        (TensorSpec("x", (None, 4), "float32"),), (TensorSpec("y", (None, 4), "float32"),)
    )

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}


def serve(protocol: str, kind: str) -> None:
    """Prints the port, then for each line that it gets the processor seconds so far."""
    engine = ServingEngine(Identity())
    engine.start()
    options: dict[str, Any] = {}
    if kind == "access log":
        options["access_log"] = True
    elif kind.startswith("traces"):
        options["traces"] = make_provider(is_sampled=kind.endswith("exported"))
    make = HttpServer if protocol == "HTTP" else GrpcServer
    server = make(Service(engine, ServerOptions(0, 0, **options)))
    server.start()
    print(server.port, flush=True)
    for _ in sys.stdin:
        print(time.process_time(), flush=True)
    server.stop()
    engine.close()


def make_provider(is_sampled: bool) -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    class Drop(SpanExporter):
        def export(self, spans: Any) -> Any:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ALWAYS_ON if is_sampled else ALWAYS_OFF)
    provider.add_span_processor(BatchSpanProcessor(Drop()))
    return provider


async def ask_http(port: int) -> None:
    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(REQUESTS // CLIENTS):
            writer.write(HEAD + BODY)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def ask_grpc(port: int) -> None:
    import grpc.aio
    import numpy as np

    from keras_deepseek.inference.protocols.grpc_messages import new_message
    from keras_deepseek.inference.protocols.tensor_proto import to_tensor_proto

    message = new_message("tensorflow.serving.PredictRequest")
    message.model_spec.name = "model"
    message.inputs["x"].CopyFrom(to_tensor_proto(np.zeros((1, 4), "float32")))
    data = message.SerializeToString()

    async def client() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.unary_unary(METHOD)
            for _ in range(REQUESTS // CLIENTS):
                await call(data)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def measure(protocol: str, kind: str) -> float:
    """Returns the processor milliseconds of a request, of a server of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, __file__, "--serve", protocol, kind]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            call,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None

        def processor_seconds() -> float:
            print(file=server.stdin, flush=True)
            return float(server.stdout.readline())  # type: ignore[union-attr]

        port = server.stdout.readline().strip()
        client = [sys.executable, __file__, "--ask", protocol, port]
        subprocess.run(client, check=True, env=environment)  # It is warm afterwards.
        start_seconds = processor_seconds()
        subprocess.run(client, check=True, env=environment)
        spent = processor_seconds() - start_seconds
        server.stdin.close()
        server.wait()
        if kind == "access log":
            lines = errors.seek(0) or errors.read().count(b"\n")
            assert lines == 2 * (REQUESTS // CLIENTS) * CLIENTS, lines
    return 1000 * spent / REQUESTS


def _has_telemetry() -> bool:
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None


def main() -> int:
    arguments = make_parser(__doc__, has_quick=False).parse_args()
    protocols = ["HTTP", *(["gRPC"] if find_spec("grpc") else [])]
    kinds = KINDS if _has_telemetry() else KINDS[:2]
    seconds: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for protocol in protocols:
            for kind in kinds:
                seconds.setdefault(f"{protocol}, {kind}", []).append(measure(protocol, kind))
    print("| | processor ms a request, median | least |")
    print("|---|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {statistics.median(spent):.3f} | {min(spent):.3f} |")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    figures = [
        Figure(f"processor time of a request, {name}", statistics.median(spent), "ms")
        for name, spent in seconds.items()
    ]
    return report(arguments.json, figures, seconds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--ask"]:
        asyncio.run({"HTTP": ask_http, "gRPC": ask_grpc}[sys.argv[2]](int(sys.argv[3])))
    else:
        sys.exit(main())

"""Claim: serving over gRPC takes little more of a processor than gRPC itself.

64 calls at a time over four channels, each of one row, by a client in a process of its own. The
model sleeps for 4 + 0.25 n ms a batch. Beside the server of this package: the same calls answered
by `grpc`'s server of threads, and both kinds of server with nothing to do. Processor time is that
of the server's process for one answered call. Rounds alternate, so that other load on the machine
meets all of them; the least of each is given, too. Needs grpcio. Prints a table and writes the
numbers as JSON:

    python benchmarks/serving_grpc.py [--json RESULT.json]
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from processes import make_parser
from result import Figure, report

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import GrpcServer, ServerOptions, Service, ServingEngine
from keras_deepseek.inference.protocols import tf_serving_grpc
from keras_deepseek.inference.protocols.grpc_messages import new_message
from keras_deepseek.inference.protocols.tensor_proto import bind_tensor_protos, to_tensor_proto
from keras_deepseek.inference.server.server import loop_factory

SECONDS, CLIENTS, CHANNELS = 3.0, 64, 4
SERVICE, METHOD = "tensorflow.serving.PredictionService", "Predict"
KINDS = ("GrpcServer", "GrpcServer without uvloop", "threads", "grpc.aio alone", "threads alone")
PEERS = {
    "threads": "grpc's threads, same model",
    "grpc.aio alone": "grpc.aio that echoes",
    "threads alone": "grpc's threads that echo",
}
CEILING = 32 / (0.004 + 0.00025 * 32)
"""Rows a second of full batches."""


class Sleeper:
    """A model that takes its time, and no processor."""

    signature = Signature(
        (TensorSpec("x", (None, 4), "float32"),), (TensorSpec("y", (None, 4), "float32"),)
    )

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.004 + 0.00025 * len(inputs["x"]))
        return {"y": inputs["x"]}


def serve(kind: str) -> None:
    """Prints the port, then for each line that it gets the processor seconds so far."""
    engine = ServingEngine(Sleeper())
    engine.start()
    if kind.startswith("GrpcServer"):
        if kind.endswith("without uvloop"):
            sys.modules["uvloop"] = None  # type: ignore[assignment]
        server = GrpcServer(Service(engine, ServerOptions(grpc_port=0)))
        server.start()
        answer(server.port)
    elif kind == "grpc.aio alone":
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve_nothing())
    else:
        serve_by_threads(engine, with_model=kind == "threads")


def serve_by_threads(engine: ServingEngine, with_model: bool) -> None:
    import grpc

    def predict(data: bytes, context: Any) -> bytes:
        if not with_model:
            return data
        call = tf_serving_grpc.parse_predict(data)
        inputs = bind_tensor_protos(call.inputs, engine.signature)
        future = engine.submit(inputs, model=call.model.name)
        context.add_callback(future.cancel)
        return tf_serving_grpc.format_predict(call, future.result(), 1)

    server = grpc.server(ThreadPoolExecutor(2 * CLIENTS))
    server.add_generic_rpc_handlers([handler_of(predict)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    answer(port)


async def serve_nothing() -> None:
    import grpc.aio

    async def echo(data: bytes, _context: Any) -> bytes:
        return data

    server = grpc.aio.server(handlers=[handler_of(echo)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(answer, port)
    await server.stop(None)


def handler_of(function: Callable[[bytes, Any], Any]) -> Any:
    import grpc

    handler = grpc.unary_unary_rpc_method_handler(function)
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})


def answer(port: int) -> None:
    print(port, flush=True)
    for _ in sys.stdin:
        print(time.process_time(), flush=True)


async def ask(port: int) -> list[float]:
    """Returns the latency of each call."""
    import grpc.aio

    message = new_message("tensorflow.serving.PredictRequest")
    message.model_spec.name = "model"
    message.inputs["x"].CopyFrom(to_tensor_proto(np.zeros((1, 4), "float32")))
    data = message.SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(CHANNELS)
    ]
    end, latencies = time.monotonic() + SECONDS, []

    async def client(channel: Any) -> None:
        call = channel.unary_unary(f"/{SERVICE}/{METHOD}")
        while (start := time.monotonic()) < end:
            await call(data)
            latencies.append(time.monotonic() - start)

    await asyncio.gather(*(client(channels[number % CHANNELS]) for number in range(CLIENTS)))
    for channel in channels:
        await channel.close()
    return latencies


def measure(kind: str) -> dict[str, float]:
    """Returns what one round with a server of its own has found."""
    call = [sys.executable, __file__, "--serve", kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def processor_seconds() -> float:
            print(file=child.stdin, flush=True)
            return float(child.stdout.readline())  # type: ignore[union-attr]

        port = int(child.stdout.readline())
        start_seconds = processor_seconds()
        client = [sys.executable, __file__, "--ask", str(port)]
        process = subprocess.run(
            client, capture_output=True, text=True, check=True, env=environment
        )
        latencies = json.loads(process.stdout)
        spent = processor_seconds() - start_seconds
        child.kill()
    return {
        "a second": len(latencies) / SECONDS,
        "processor ms a call": 1000 * spent / len(latencies),
        "p50 ms": 1000 * statistics.median(latencies),
        "p99 ms": 1000 * statistics.quantiles(latencies, n=100)[98],
    }


def main() -> int:
    arguments = make_parser(__doc__, has_quick=False).parse_args()
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.rounds):
        for kind in KINDS:
            rounds[kind].append(measure(kind))
    print(
        "| | calls a second, median | of the ceiling, best | processor ms a call, median | least |"
    )
    print("|---|---|---|---|---|")
    for kind, measurements in rounds.items():
        rate = [numbers["a second"] for numbers in measurements]
        spent = [numbers["processor ms a call"] for numbers in measurements]
        share = f"{max(rate) / CEILING:.2f}" if "alone" not in kind else "-"
        print(
            f"| {kind} | {statistics.median(rate):.0f} | {share} | "
            f"{statistics.median(spent):.2f} | {min(spent):.2f} |"
        )
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    spent = {
        kind: statistics.median(numbers["processor ms a call"] for numbers in measurements)
        for kind, measurements in rounds.items()
    }
    figures = [
        Figure("processor time of a call", spent[KINDS[0]], "ms", peer=peer, theirs=spent[kind])
        for kind, peer in PEERS.items()
    ]
    figures.append(Figure("processor time of a call, without uvloop", spent[KINDS[1]], "ms"))
    return report(arguments.json, figures, rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    elif sys.argv[1:2] == ["--ask"]:
        with asyncio.Runner(loop_factory=loop_factory()) as asking:
            print(json.dumps(asking.run(ask(int(sys.argv[2])))))
    else:
        sys.exit(main())

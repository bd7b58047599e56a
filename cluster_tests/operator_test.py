"""The operator on a real API server: kubectl, the checks of objects, hand-overs and regions.

Where the API server has no controllers, `simulate_deployment` and `simulate_autoscaler` stand in.
"""

import json
import subprocess
import time

import pytest

from cluster_tests.cluster import apply_definitions, stand_in_definition, wait_for
from cluster_tests.objects import (
    KINDS,
    SCALING,
    apply_many,
    collect_garbage,
    is_leaving,
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
    form = "jsonpath={range .items[*]}{.type} {.reason}: {.message}{'\\n'}{end}"
    wait_for(lambda: "Normal Ready: 3 replicas" in kubectl("get", "events", "-o", form), "events")
    print(events := kubectl("get", "events", "-o", form))
    assert "Normal Applied: created Service 'nlp-service', created Deployment" in events
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
        ({"model": {"uri": "pvc://models/../a"}}, "needs a claim"),
        (
            {
                "autoscaling": {"maxReplicas": 2, "metrics": CPU},
                "regions": [{"name": "eu", "minReplicas": 3}],
            },
            "of a region is above",
        ),
        (
            {
                "autoscaling": {"maxReplicas": 2, "metrics": CPU},
                "regions": [{"name": "eu", "minReplicas": 0}],
            },
            "of a region needs engine KEDA",
        ),
        ({"resources": {"limits": {"memory": -1}}}, "greater than or equal to 0"),
        ({"rollout": {"maxSurge": -1}}, "greater than or equal to 0"),
        ({"model": {"uri": "oci://registry/model:1"}}, "needs a digest"),
        ({"model": {"uri": "models"}}, "needs a scheme"),
        ({"regions": [{"name": "eu"}, {"name": "eu"}]}, "Duplicate value"),
        ({"resources": {"limits": {"cpu": "1x"}}}, "should match"),
        ({"replica": 3}, "unknown field"),
        ({"replicas": "3"}, "must be of type integer"),
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
    counts = [int(word) for word in log.read_text().split()]
    print("replicas over time:", counts)
    assert set(counts) == {5, 7}
    assert counts == sorted(counts)


def test_autoscaling_switched_on_at_zero_starts_pods(kubectl, start):
    start()
    kubectl.apply("digits", replicas=0)
    wait_for(lambda: replicas(kubectl, "digits") == 0, "no replica")
    kubectl.apply("digits", replicas=0, autoscaling=SCALING)
    wait_for(lambda: replicas(kubectl, "digits") == 2, "the fewest replicas")
    kubectl("patch", "deployments", "digits", "--type=merge", "-p", '{"spec":{"replicas":0}}')
    wait_for(lambda: kubectl.condition("digits").get("reason") == "ScaledToZero", "a problem")


def test_orphans_are_adopted(kubectl, start):
    """The end of their owners is simulated: the garbage collector removes the references."""
    operator = start()
    kubectl.apply("digits", replicas=3)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    operator.stop()
    kubectl("delete", "modeldeployments", "digits", "--cascade=orphan", "--wait=false")
    patch = '{"metadata":{"ownerReferences":null,"finalizers":null}}'
    for kind in ("services", "deployments", "poddisruptionbudgets", "modeldeployments"):
        kubectl("patch", kind, "digits", "--type=merge", "-p", patch)
    uid = kubectl.get("deployments", "digits")["metadata"]["uid"]
    start()
    kubectl.apply("digits", replicas=4)
    wait_for(lambda: replicas(kubectl, "digits") == 4, "four replicas")
    assert kubectl.get("deployments", "digits")["metadata"]["uid"] == uid


def test_regions(kubectl, start):
    start("--region", "eu")
    kubectl.apply("here", replicas=1, regions=[{"name": "eu", "replicas": 2}])
    kubectl.apply("elsewhere", replicas=1, regions=[{"name": "us"}])
    wait_for(lambda: replicas(kubectl, "here") == 2, "two replicas")
    wait_for(lambda: kubectl.condition("elsewhere").get("reason") == "NotInRegion", "a notice")
    assert kubectl.get("deployments", "elsewhere") is None


def test_mistaken_region_deletes_nothing(kubectl, start):
    operator = start("--region", "eu")
    kubectl.apply("digits", replicas=2, regions=[{"name": "eu"}])
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    operator.stop()
    operator = start("--region", "EU")
    wait_for(lambda: kubectl.condition("digits").get("reason") == "RegionChanged", "a problem")
    print(kubectl.condition("digits")["message"])
    assert kubectl.condition("digits")["status"] == "False"
    assert replicas(kubectl, "digits") == 2
    operator.stop()
    start("--region", "eu")
    kubectl.apply("digits", replicas=2, regions=[{"name": "us"}])
    wait_for(lambda: kubectl.condition("digits").get("reason") == "NotInRegion", "a notice")
    wait_for(lambda: is_leaving(kubectl, "digits"), "the deletion")


def test_promotion_of_a_canary(kubectl, start):
    apply_definitions(stand_in_definition("gateway.networking.k8s.io", "v1", "HTTPRoute"))
    start()
    spec = {"replicas": 4, "route": {"gateway": {"name": "public"}}}
    kubectl.apply("digits", **spec, canary={"weight": 50, "image": "serving:2"})
    wait_for(lambda: replicas(kubectl, "digits-canary") == 2, "the canary")
    for name in ("digits", "digits-canary"):
        simulate_deployment(kubectl, name)
    both = {"digits": 50, "digits-canary": 50}
    wait_for(lambda: weights(kubectl) == both, "both versions in the route")
    wait_for(lambda: kubectl.condition("digits")["status"] == "True", "ready")
    kubectl.apply("digits", **spec, image="serving:2")
    wait_for(lambda: "serving:2" in json.dumps(kubectl.get("deployments", "digits")), "a rollout")
    wait_for(lambda: kubectl.condition("digits")["status"] == "False", "the rollout's status")
    time.sleep(2)
    assert weights(kubectl) == both
    assert not is_leaving(kubectl, "digits-canary")
    simulate_deployment(kubectl, "digits")
    wait_for(lambda: weights(kubectl) == {"digits": 100}, "one version in the route")
    wait_for(lambda: is_leaving(kubectl, "digits-canary"), "the canary's end")
    time.sleep(2)
    assert kubectl.get("services", "digits-canary")
    collect_garbage(kubectl, "digits-canary")
    wait_for(lambda: not kubectl.get("services", "digits-canary"), "no canary")


def weights(kubectl):
    """Returns the weights of the route."""
    route = kubectl.get("httproutes", "digits")
    return {
        backend["name"]: backend["weight"] for backend in route["spec"]["rules"][0]["backendRefs"]
    }


def test_stops_on_sigterm_amid_work(kubectl, start):
    operator = start()
    apply_many(kubectl, [f"model-{number}" for number in range(25)], autoscaling=SCALING)
    wait_for(lambda: replicas(kubectl, "model-3"), "the first ones")
    assert operator.stop() == 0
    log = operator.log.read_text()
    assert "Session is closed" not in log
    assert "Started on http" in log
    assert "created Deployment 'model-3'" in log


def test_stops_on_sigterm(start):
    operator = start()
    time.sleep(3)
    assert operator.stop() == 0

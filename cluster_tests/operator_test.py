"""The operator on a real API server: kubectl, hand-overs, restarts and faults.

Where the API server has no controllers, `simulate_deployment` and `simulate_autoscaler` stand in.
"""

import json
import signal
import subprocess
import time

import pytest

from cluster_tests.cluster import wait_for

SCALING = {
    "enabled": True,
    "minReplicas": 2,
    "maxReplicas": 10,
    "metrics": [{"type": "RequestsPerSecond", "target": 1000}],
}
CPU = [{"type": "CPU", "target": 50}]
KINDS = ("deployments", "services", "horizontalpodautoscalers", "poddisruptionbudgets")


def simulate_deployment(kubectl, name, available=None):
    """Writes the status that the Deployment controller would write."""
    found = kubectl.get("deployments", name)
    count = found["spec"]["replicas"]
    ready = count if available is None else available
    status = {"replicas": count, "updatedReplicas": count, "readyReplicas": ready}
    status |= {"availableReplicas": ready, "observedGeneration": found["metadata"]["generation"]}
    patch = json.dumps({"status": status})
    kubectl("patch", "deployments", name, "--subresource=status", "--type=merge", "-p", patch)


def simulate_autoscaler(kubectl, name, replicas):
    """Scales as the HorizontalPodAutoscaler controller would: by the scale subresource."""
    patch = json.dumps({"spec": {"replicas": replicas}})
    manager = "--field-manager=kube-controller-manager"
    flags = ("--subresource=scale", "--type=merge", manager)
    kubectl("patch", "deployments", name, *flags, "-p", patch)


def replicas(kubectl, name):
    found = kubectl.get("deployments", name)
    return found and found["spec"].get("replicas")


def versions(kubectl, name):
    """Returns the resource versions of an object and its children."""
    found = {kind: kubectl.get(kind, name) for kind in ("modeldeployments", *KINDS)}
    return {kind: one["metadata"]["resourceVersion"] for kind, one in found.items() if one}


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


def test_restart_adopts_and_writes_nothing(kubectl, start):
    operator = start()
    kubectl.apply("digits", replicas=2, autoscaling=SCALING)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    simulate_deployment(kubectl, "digits")
    wait_for(lambda: kubectl.condition("digits").get("status") == "True", "ready")
    operator.stop(signal.SIGKILL)
    before = versions(kubectl, "digits")
    start()
    kubectl.apply("other", replicas=1)
    wait_for(lambda: replicas(kubectl, "other"), "the new operator works")
    time.sleep(2)
    after = versions(kubectl, "digits")
    # The stand-in for the API server writes an applied autoscaler each time (see its README).
    assert {k: v for k, v in after.items() if k != "horizontalpodautoscalers"} == {
        k: v for k, v in before.items() if k != "horizontalpodautoscalers"
    }


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_killed_in_a_plan_it_reaches_the_same_objects(kubectl, start, delay):
    operator = start()
    kubectl.apply("first", replicas=1)
    wait_for(lambda: replicas(kubectl, "first"), "the operator works")
    kubectl.apply("digits", replicas=3, autoscaling=SCALING)
    time.sleep(delay)
    operator.stop(signal.SIGKILL)
    start()
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    assert replicas(kubectl, "digits") == 3


def test_two_operators_agree(kubectl, start):
    start()
    start()
    kubectl.apply("digits", replicas=3)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    simulate_deployment(kubectl, "digits")
    wait_for(lambda: kubectl.condition("digits").get("status") == "True", "ready")
    time.sleep(2)
    before = versions(kubectl, "digits")
    time.sleep(3)
    assert versions(kubectl, "digits") == before
    assert replicas(kubectl, "digits") == 3


def test_api_server_killed_and_back(api_server, kubectl, start):
    if api_server is None:
        pytest.skip("The API server of KUBECONFIG is not ours to kill.")
    operator = start()
    kubectl.apply("digits", replicas=1)
    wait_for(lambda: replicas(kubectl, "digits"), "the operator works")
    api_server.kill()
    time.sleep(3)
    api_server.start()
    kubectl.apply("digits", replicas=4)
    wait_for(lambda: replicas(kubectl, "digits") == 4, "four replicas", 90)
    assert operator.process.poll() is None


def test_problems_are_one_condition_and_the_others_go_on(kubectl, start):
    start()
    kubectl("create", "service", "externalname", "taken", "--external-name=x")
    kubectl.apply("taken", replicas=1)
    kubectl.apply("keda", autoscaling={**SCALING, "engine": "KEDA"})
    kubectl.apply("broken", replicas=1, template={"spec": {"containers": {}}})
    kubectl.apply("wrong", replicas=1, template={"spec": {"dnsPolice": "None"}})
    kubectl.apply("good", replicas=1)
    wait_for(lambda: replicas(kubectl, "good") == 1, "the good one")
    reasons = {"taken": "NameTaken", "keda": "KindMissing", "broken": "TemplateBroken"}
    for name, reason in reasons.items():
        wait_for(lambda n=name: kubectl.condition(n, "Stalled").get("status") == "True", name)
        assert kubectl.condition(name, "Stalled")["reason"] == reason
    wait_for(lambda: kubectl.condition("wrong", "Stalled").get("status") == "True", "wrong")
    assert "dnsPolice" in kubectl.condition("wrong", "Stalled")["message"]
    assert kubectl.get("services", "taken")["spec"]["externalName"] == "x"


def test_drift_is_mended(kubectl, start):
    start()
    kubectl.apply("digits", replicas=3)
    wait_for(lambda: kubectl.get("poddisruptionbudgets", "digits"), "all children")
    kubectl("patch", "deployments", "digits", "--type=merge", "-p", '{"spec":{"replicas":9}}')
    wait_for(lambda: replicas(kubectl, "digits") == 3, "three replicas again")


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

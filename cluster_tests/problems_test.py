"""Objects that can't be served, on a real API server: one condition, and the others go on."""

import json
import time

from cluster_tests.cluster import apply_definitions, stand_in_definition, wait_for
from cluster_tests.objects import SCALING, apply_many, replicas, simulate_deployment

KEDA = stand_in_definition("keda.sh", "v1alpha1", "ScaledObject")
FORBIDDEN = 'is forbidden: User "system:serviceaccount:keras-deepseek:operator" cannot do so'


def message(kubectl, name, kind="Stalled"):
    """Returns the reason and message of a condition, once it is true."""
    condition = wait_for(lambda: kubectl.condition(name, kind), name)
    wait_for(lambda: kubectl.condition(name, kind)["status"] == "True", name)
    condition = kubectl.condition(name, kind)
    return f"{condition['reason']}: {condition['message']}"


def test_problems_are_one_condition_and_the_others_go_on(kubectl, start):
    start()
    kubectl("create", "service", "externalname", "taken", "--external-name=x")
    kubectl.apply("taken", replicas=1)
    kubectl.apply("keda", autoscaling={**SCALING, "engine": "KEDA"})
    kubectl.apply("broken", replicas=1, template={"spec": {"containers": {}}})
    kubectl.apply("wrong", replicas=1, template={"spec": {"dnsPolice": "None"}})
    kubectl.apply("endless", replicas=1, args=["--limit", "grace_seconds=inf"])
    kubectl.apply("port", replicas=1, args=["--http-port", "9000"])
    kubectl.apply("good", replicas=1)
    wait_for(lambda: replicas(kubectl, "good") == 1, "the good one")
    reasons = {"taken": "NameTaken", "keda": "KindMissing", "broken": "TemplateBroken"}
    reasons |= {"endless": "InvalidObject", "port": "InvalidObject"}
    for name, reason in reasons.items():
        wait_for(lambda n=name: kubectl.condition(n, "Stalled").get("status") == "True", name)
        assert kubectl.condition(name, "Stalled")["reason"] == reason
    wait_for(lambda: kubectl.condition("wrong", "Stalled").get("status") == "True", "wrong")
    assert "dnsPolice" in kubectl.condition("wrong", "Stalled")["message"]
    assert kubectl.get("services", "taken")["spec"]["externalName"] == "x"


def test_broken_templates(kubectl, start, proxy):
    start(config=proxy.config)
    container = {"name": "server"}
    templates = {
        "quantity": {"containers": [{**container, "resources": {"limits": {"cpu": "1x"}}}]},
        "text": {"containers": [{**container, "resources": {"requests": "2Gi"}}]},
        "list": {"containers": [{**container, "resources": {"limits": ["cpu"]}}]},
        "nameless": {"containers": [{"image": "x"}]},
        "empty": {"containers": None},
        "unknown": {"containers": [{**container, "imagePolicy": "Always"}]},
        "kind": {"containers": [{**container, "tty": "yes"}]},
    }
    for name, spec in templates.items():
        # Without --server-side kubectl would drop the null.
        apply_many(kubectl, [name], replicas=1, template={"spec": spec})
    kubectl.apply("good", replicas=1)
    messages = {name: message(kubectl, name) for name in templates}
    print(json.dumps(messages, indent=1))
    assert "resources: '1x' is not a quantity" in messages["quantity"]
    assert "limits" in messages["list"]
    assert "needs a name" in messages["nameless"]
    assert "must not remove spec.containers" in messages["empty"]
    assert "imagePolicy" in messages["unknown"]
    for name in ("text", "list", "unknown", "kind"):
        assert messages[name].startswith("TemplateBroken: spec.template does not fit"), name
    assert "tty" in messages["kind"]
    wait_for(lambda: replicas(kubectl, "good") == 1, "the good one")
    simulate_deployment(kubectl, "good")
    proxy.wait_until_quiet(8.0)


def test_errors_of_pods(kubectl, start):
    """A claim, a secret and an image that are missing, and an image that is too old."""
    start()
    kubectl.apply("digits", model={"uri": "pvc://models/digits"}, replicas=1)
    wait_for(lambda: kubectl.get("deployments", "digits"), "a Deployment")
    waiting = {
        "secret": ("CreateContainerConfigError", 'secret "s3" not found'),
        "digest": ("ImagePullBackOff", "registry/model@sha256:0: not found"),
        "old": ("CrashLoopBackOff", "serve: error: unrecognized arguments: --admin-port 8502"),
    }
    statuses = {
        name: {"containerStatuses": [_waiting(*arguments)]} for name, arguments in waiting.items()
    }
    unscheduled = 'persistentvolumeclaim "models" not found'
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    statuses["claim"] = {"conditions": [{**condition, "message": unscheduled}]}
    labels = kubectl.get("deployments", "digits")["spec"]["selector"]["matchLabels"]
    for name, status in statuses.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}}
        pod["spec"] = {"containers": [{"name": "server", "image": "x"}]}
        kubectl("apply", "-f", "-", text=json.dumps(pod))
        patch = json.dumps({"status": status})
        kubectl("patch", "pods", name, "--subresource=status", "--type=merge", "-p", patch)
    simulate_deployment(kubectl, "digits", available=0)
    texts = [unscheduled, *(text for _, text in waiting.values()), "as new as the operator"]
    wait_for(lambda: all(t in message(kubectl, "digits", "Reconciling") for t in texts), "errors")
    print(message(kubectl, "digits", "Reconciling"))
    simulate_deployment(kubectl, "digits")
    wait_for(lambda: kubectl.condition("digits")["status"] == "True", "ready")


def _waiting(reason, text):
    state = {"waiting": {"reason": reason, "message": text}}
    container = {"name": "server", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    return {**container, "state": state}


def test_refused_rights(kubectl, start, proxy):
    """Only objects that need a refused kind stop, and they go on when the right is there."""
    apply_definitions(KEDA)
    try:
        for part in ("/scaledobjects", "/horizontalpodautoscalers"):
            for method in ("GET", "PATCH", "DELETE"):
                proxy.refuse(method, part, 403, "Forbidden", part[1:] + " " + FORBIDDEN)
        operator = start(config=proxy.config)
        kubectl.apply("keda", autoscaling={**SCALING, "engine": "KEDA"})
        kubectl.apply("hpa", autoscaling=SCALING)
        kubectl.apply("good", replicas=2)
        wait_for(lambda: kubectl.get("poddisruptionbudgets", "good"), "all of the good one")
        simulate_deployment(kubectl, "good")
        wait_for(lambda: kubectl.condition("good").get("status") == "True", "the good one")
        for name in ("keda", "hpa"):
            text = message(kubectl, name)
            print(text)
            assert text.startswith("Forbidden: ")
            assert text.endswith("Give the operator the rights of kubernetes/base/rbac.yaml.")
        refused = len(proxy.requests)
        time.sleep(60)
        print("60 s with refused rights:", proxy.count(refused))
        assert proxy.count(refused)["writes"] <= 2
        proxy.refusals.clear()
        wait_for(lambda: kubectl.get("scaledobjects", "keda"), "a ScaledObject", 90)
        wait_for(lambda: kubectl.get("horizontalpodautoscalers", "hpa"), "an autoscaler", 90)
        assert operator.process.poll() is None
    finally:
        kubectl("delete", "crd", KEDA["metadata"]["name"])

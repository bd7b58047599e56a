"""The rights of the operator: those of `kubernetes/base` are the ones that it uses."""

import json
import subprocess

import pytest

from cluster_tests.cluster import Operator, wait_for
from cluster_tests.rights import Right, RightsProxy, shipped_rights

AUTOSCALING = {
    "minReplicas": 2,
    "maxReplicas": 4,
    "metrics": [{"type": "RequestsPerSecond", "target": 100}],
}
ROUTE = {"gateway": {"name": "public"}, "hostnames": ["a.example"], "grpcHostnames": ["b.example"]}
OTHERS = (
    ("keda.sh", "v1alpha1", "ScaledObject"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute"),
)
"""The kinds of KEDA and the Gateway API: stand-ins that take every field."""


def definition_of(group, version, kind):
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "listKind": f"{kind}List"},
            "versions": [{**served, "schema": {"openAPIV3Schema": schema}}],
        },
    }


@pytest.fixture
def other_kinds(api_server, definition):
    """Adds the kinds of KEDA and the Gateway API, and removes them again."""
    if api_server is None:
        pytest.skip("A cluster of your own checks rights itself.")
    definitions = json.dumps(
        {"apiVersion": "v1", "kind": "List", "items": [definition_of(*kind) for kind in OTHERS]}
    )
    names = [f"crd/{definition_of(*kind)['metadata']['name']}" for kind in OTHERS]
    subprocess.run(["kubectl", "apply", "-f", "-"], input=definitions, text=True, check=True)
    subprocess.run(["kubectl", "wait", "--for=condition=Established", *names], check=True)
    yield
    subprocess.run(["kubectl", "delete", *names], check=True)


def test_operator_uses_each_of_its_rights(other_kinds, kubectl, start, rights_proxy):
    start()

    def wait_for_children(*kinds):
        def are_there():
            print(found := kubectl("get", names, "-o", "jsonpath={.items[*].kind}"))
            return sorted(found.split()) == sorted(kinds)

        wait_for(are_there, f"{kinds}")

    names = "deployments,services,horizontalpodautoscalers,poddisruptionbudgets,"
    names += "scaledobjects.keda.sh,httproutes,grpcroutes"
    service, autoscaler = ("Deployment", "Service"), "HorizontalPodAutoscaler"
    kubectl.apply("digits", autoscaling=AUTOSCALING, route=ROUTE, canary={"weight": 10})
    canary = (*service, autoscaler)  # It has one pod, and no budget.
    routes = ("HTTPRoute", "GRPCRoute")
    wait_for_children(*service, "PodDisruptionBudget", autoscaler, *canary, *routes)
    kubectl.apply("digits", autoscaling={**AUTOSCALING, "engine": "KEDA"})
    wait_for_children(*service, "PodDisruptionBudget", "ScaledObject")
    kubectl.apply("digits", autoscaling={**AUTOSCALING, "enabled": False}, replicas=1)
    wait_for_children(*service)
    wait_for(lambda: kubectl.condition("digits").get("reason") == "Progressing", "the status")
    for right, namespaces in sorted(rights_proxy.used.items()):
        print(*right, "of the cluster" if None in namespaces else "of a namespace")
    assert shipped_rights() - set(rights_proxy.used) == set()


def test_a_refused_right_is_a_condition(api_server, kubectl, tmp_path):
    if api_server is None:
        pytest.skip("A cluster of your own checks rights itself.")
    missing = Right("policy", "poddisruptionbudgets", "create")
    proxy = RightsProxy(api_server.url, shipped_rights() - {missing}, tmp_path / "config")
    operator = Operator(tmp_path / "log", "--model-store", "s3://models", config=proxy.config)
    try:
        kubectl.apply("two", replicas=2)
        kubectl.apply("one", replicas=1)
        wait_for(lambda: kubectl.condition("two", "Stalled").get("status") == "True", "a notice")
        assert "poddisruptionbudgets" in kubectl.condition("two", "Stalled")["message"]
        wait_for(lambda: kubectl.condition("one").get("reason") == "Progressing", "the other one")
    finally:
        operator.stop()
        proxy.stop()

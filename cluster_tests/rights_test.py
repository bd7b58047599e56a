"""The rights of the operator: those of `kubernetes/base` are the ones that it uses."""

import subprocess

import pytest

from cluster_tests.cluster import apply_definitions, stand_in_definition, wait_for
from cluster_tests.objects import collect_garbage, is_leaving, simulate_deployment
from cluster_tests.rights import shipped_rights

AUTOSCALING = {
    "minReplicas": 2,
    "maxReplicas": 4,
    "metrics": [{"type": "RequestsPerSecond", "target": 100}],
}
ROUTE = {"gateway": {"name": "public"}, "hostnames": ["a.example"], "grpcHostnames": ["b.example"]}
OTHERS = [
    stand_in_definition("keda.sh", "v1alpha1", "ScaledObject"),
    stand_in_definition("gateway.networking.k8s.io", "v1", "HTTPRoute"),
    stand_in_definition("gateway.networking.k8s.io", "v1", "GRPCRoute"),
]


@pytest.fixture
def other_kinds(api_server, definition):
    """Adds the kinds of KEDA and the Gateway API, and removes them again."""
    if api_server is None:
        pytest.skip("A cluster of your own checks rights itself.")
    apply_definitions(*OTHERS)
    yield
    names = [f"crd/{manifest['metadata']['name']}" for manifest in OTHERS]
    subprocess.run(["kubectl", "delete", *names], check=True)


def test_operator_uses_each_of_its_rights(other_kinds, kubectl, start, rights_proxy):
    start()

    def wait_for_children(*kinds):
        def are_there():
            print(output := kubectl("get", names, "-o", "jsonpath={.items[*].kind}"))
            return sorted(output.split()) == sorted(kinds)

        wait_for(are_there, f"{kinds}")

    names = "deployments,services,horizontalpodautoscalers,poddisruptionbudgets,"
    names += "scaledobjects.keda.sh,httproutes,grpcroutes"
    service, autoscaler = ("Deployment", "Service"), "HorizontalPodAutoscaler"
    kubectl.apply("digits", autoscaling=AUTOSCALING, route=ROUTE, canary={"weight": 10})
    canary = (*service, autoscaler)  # It has one pod, and no budget.
    routes = ("HTTPRoute", "GRPCRoute")
    wait_for_children(*service, "PodDisruptionBudget", autoscaler, *canary, *routes)
    kubectl.apply("digits", autoscaling={**AUTOSCALING, "engine": "KEDA"})
    wait_for(lambda: kubectl.get("scaledobjects.keda.sh", "digits"), "the new engine")
    simulate_deployment(kubectl, "digits")
    wait_for(lambda: is_leaving(kubectl, "digits-canary"), "the canary's end")
    collect_garbage(kubectl, "digits-canary")
    wait_for_children(*service, "PodDisruptionBudget", "ScaledObject")
    kubectl.apply("digits", autoscaling={**AUTOSCALING, "enabled": False})
    kubectl("scale", "deployments/digits", "--replicas=1")
    wait_for_children(*service)
    wait_for(lambda: kubectl.condition("digits").get("reason") == "Ready", "the status")
    for right, namespaces in sorted(rights_proxy.used.items()):
        print(*right, "of the cluster" if None in namespaces else "of a namespace")
    assert shipped_rights() - set(rights_proxy.used) == set()

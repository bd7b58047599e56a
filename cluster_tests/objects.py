"""Objects of the tests, and stand-ins for what controllers write into them."""

import json
import urllib.request

SCALING = {
    "enabled": True,
    "minReplicas": 2,
    "maxReplicas": 10,
    "metrics": [{"type": "RequestsPerSecond", "target": 1000}],
}
KINDS = ("deployments", "services", "horizontalpodautoscalers", "poddisruptionbudgets")


def simulate_deployment(kubectl, name, available=None):
    """Writes the status that the Deployment controller would write."""
    deployment = kubectl.get("deployments", name)
    count = deployment["spec"]["replicas"]
    ready = count if available is None else available
    status = {"replicas": count, "updatedReplicas": count, "readyReplicas": ready}
    status |= {
        "availableReplicas": ready,
        "observedGeneration": deployment["metadata"]["generation"],
    }
    patch = json.dumps({"status": status})
    kubectl("patch", "deployments", name, "--subresource=status", "--type=merge", "-p", patch)


def simulate_deployments(url, namespace):
    """Writes the status of all Deployments of a namespace: all pods are ready."""
    path = f"{url}/apis/apps/v1/namespaces/{namespace}/deployments"
    for deployment in json.load(urllib.request.urlopen(path))["items"]:
        metadata, count = deployment["metadata"], deployment["spec"]["replicas"]
        status = {"replicas": count, "updatedReplicas": count, "readyReplicas": count}
        status |= {"availableReplicas": count, "observedGeneration": metadata["generation"]}
        request = urllib.request.Request(
            f"{path}/{metadata['name']}/status",
            json.dumps({"status": status}).encode(),
            {"Content-Type": "application/merge-patch+json"},
            method="PATCH",
        )
        urllib.request.urlopen(request).close()


def simulate_autoscaler(kubectl, name, replicas):
    """Scales as the HorizontalPodAutoscaler controller would: by the scale subresource."""
    patch = json.dumps({"spec": {"replicas": replicas}})
    manager = "--field-manager=kube-controller-manager"
    flags = ("--subresource=scale", "--type=merge", manager)
    kubectl("patch", "deployments", name, *flags, "-p", patch)


def is_leaving(kubectl, name):
    """Returns True if a Deployment is deleted, or waits for its pods to leave."""
    deployment = kubectl.get("deployments", name)
    return deployment is None or "deletionTimestamp" in deployment["metadata"]


def collect_garbage(kubectl, name):
    """Ends a deletion as the garbage collector does when the pods have left."""
    patch = '{"metadata":{"finalizers":null}}'
    kubectl("patch", "deployments", name, "--type=merge", "-p", patch, check=False)


def apply_many(kubectl, names, **spec):
    """Applies several objects at once."""
    kinds = {"apiVersion": "deepseek.io/v1", "kind": "ModelDeployment"}
    items = [{**kinds, "metadata": {"name": name}, "spec": spec} for name in names]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    kubectl("apply", "--server-side", "-f", "-", text=text)


def replicas(kubectl, name):
    deployment = kubectl.get("deployments", name)
    return deployment and deployment["spec"].get("replicas")


def versions(kubectl, name):
    """Returns the resource versions of an object and its children."""
    objects = {kind: kubectl.get(kind, name) for kind in ("modeldeployments", *KINDS)}
    return {
        kind: content["metadata"]["resourceVersion"] for kind, content in objects.items() if content
    }

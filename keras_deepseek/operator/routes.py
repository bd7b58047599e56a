"""The routes of the Gateway API that bring requests to a `ModelDeployment` and its canary."""

from keras_deepseek.operator.api import Canary, Region, Route
from keras_deepseek.operator.kinds import PORTS, Object

_VERBS = ("predict", "classify", "regress")
_METHODS = {
    "tensorflow.serving.PredictionService": None,
    "tensorflow.serving.ModelService": ("GetModelStatus",),
    "grpc.health.v1.Health": None,
    "inference.GRPCInferenceService": (
        "ModelConfig",
        "ModelInfer",
        "ModelMetadata",
        "ModelReady",
        "ModelStreamInfer",
        "ServerLive",
        "ServerMetadata",
        "ServerReady",
    ),
}
"""The methods of gRPC for predictions; `None` for all of a service. None manages models."""


def make_http_route(route: Route, model: str, weights: dict[str, int]) -> Object:
    """Returns the spec of an HTTPRoute for the paths of one model.

    Args:
        route: The settings.
        model: The model's name in URLs.
        weights: The weight of each Service.
    """
    prefixes = (f"/v1/models/{model}", f"/v2/models/{model}")
    paths = [{"type": "PathPrefix", "value": prefix} for prefix in prefixes]
    paths += [{"type": "Exact", "value": f"/v1/models/{model}:{verb}"} for verb in _VERBS]
    matches = [{"path": path} for path in paths]
    return _route(route, route.hostnames, matches, weights, PORTS["http"])


def make_grpc_route(route: Route, weights: dict[str, int]) -> Object:
    """Returns the spec of a GRPCRoute for predictions."""
    matches = [
        {"method": {"type": "Exact", "service": service, **({"method": method} if method else {})}}
        for service, methods in _METHODS.items()
        for method in methods or (None,)
    ]
    return _route(route, route.grpc_hostnames, matches, weights, PORTS["grpc"])


def routed_share(route: Object, name: str) -> int:
    """Returns the percentage of requests that a live HTTPRoute gives to a Service."""
    shares = [
        int(backend["weight"])
        for rule in route.get("spec", {}).get("rules", [])
        for backend in rule.get("backendRefs", [])
        if backend["name"] == name
    ]
    return max(shares, default=0)


def canary_share(deployment: Object, routed: int, canary: Canary | None, fewest: int) -> int:
    """Returns the percentage of requests for the canary.

    It is the canary's weight, reduced to the part of its pods that are ready. Once the canary has
    had its whole weight, it is not reduced for pods that an autoscaler adds.

    Args:
        deployment: The canary's Deployment.
        routed: The percentage that the canary has now.
        canary: The canary's settings, or `None` while it is promoted.
        fewest: The replicas that must be available.
    """
    ready = int(deployment.get("status", {}).get("readyReplicas", 0))
    if canary is None:
        return routed if ready else 0
    if ready >= fewest and routed >= canary.weight:
        return canary.weight
    pods = max(fewest, int(deployment.get("spec", {}).get("replicas", 0)))
    return canary.weight * min(ready, pods) // pods


def route_annotations(route: Route, region: Region | None) -> dict[str, str]:
    """Returns the annotations of the routes, with the weight of the region's DNS records."""
    if region is None or region.weight is None:
        return route.annotations
    return {
        "external-dns.alpha.kubernetes.io/set-identifier": region.name,
        "external-dns.alpha.kubernetes.io/aws-weight": str(region.weight),
        **route.annotations,
    }


def _route(
    route: Route, hostnames: list[str], matches: list[Object], weights: dict[str, int], port: int
) -> Object:
    backends = [
        {"group": "", "kind": "Service", "name": name, "port": port, "weight": weight}
        for name, weight in weights.items()
    ]
    parent = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        **route.gateway.model_dump(by_alias=True, exclude_none=True),
    }
    return {
        "parentRefs": [parent],
        **({"hostnames": hostnames} if hostnames else {}),
        "rules": [{"matches": matches, "backendRefs": backends}],
    }

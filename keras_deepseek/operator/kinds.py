"""The kinds of objects that the operator writes."""

from dataclasses import dataclass
from typing import Any

from keras_deepseek.operator import api

Object = dict[str, Any]
"""An object of the API server, as parsed from JSON."""


@dataclass(frozen=True)
class Kind:
    """A kind of object, as the API server names it."""

    api_version: str
    name: str
    plural: str

    def path(self, namespace: str | None = None, name: str = "") -> str:
        """Returns the path of an object, or of the list of objects without a name."""
        root = "/api" if "/" not in self.api_version else "/apis"
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}/{self.api_version}{scope}/{self.plural}{f'/{name}' if name else ''}"


MODEL_DEPLOYMENT = Kind(api.API_VERSION, api.KIND, api.PLURAL)
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
SERVICE = Kind("v1", "Service", "services")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
DISRUPTION_BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
AUTOSCALER = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
SCALED_OBJECT = Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects")
HTTP_ROUTE = Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
GRPC_ROUTE = Kind("gateway.networking.k8s.io/v1", "GRPCRoute", "grpcroutes")

CHILDREN = (
    HTTP_ROUTE,
    GRPC_ROUTE,
    AUTOSCALER,
    SCALED_OBJECT,
    DISRUPTION_BUDGET,
    DEPLOYMENT,
    SERVICE,
)
"""The kinds of children, in the order in which they are deleted: requests stop coming first."""

OPTIONAL = {SCALED_OBJECT: "KEDA", HTTP_ROUTE: "the Gateway API", GRPC_ROUTE: "the Gateway API"}
"""The kinds that a cluster may lack, each with what brings it."""

PORTS = {"http": 8501, "grpc": 8500, "admin": 8502}
"""The ports of a pod and of its Service. Health and metrics are at `admin`."""

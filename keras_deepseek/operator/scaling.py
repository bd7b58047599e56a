"""The objects that scale a Deployment: a HorizontalPodAutoscaler, or KEDA's ScaledObject."""

from keras_deepseek.operator.api import Autoscaling, Metric
from keras_deepseek.operator.fields import canonical_quantity, quantity_value
from keras_deepseek.operator.kinds import AUTOSCALER, DEPLOYMENT, PORTS, SCALED_OBJECT, Kind, Object
from keras_deepseek.operator.problems import PlanError

METRICS = {
    "RequestsPerSecond": ("http_requests_per_second", "keras_deepseek_requests_per_second"),
    "Concurrency": ("http_requests_in_flight", "keras_deepseek_requests_in_flight"),
    "QueueTime": ("http_queue_seconds", "keras_deepseek_queue_age_seconds"),
}
"""The name of each metric in the custom metrics API, and the gauge of `serve` that it is."""

BEHAVIOR: Object = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15},
            {"type": "Pods", "value": 10, "periodSeconds": 15},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "selectPolicy": "Max",
        "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}],
    },
}
"""Fast up, slow down. Simulated days with bursts lose the fewest requests with it."""


def make_scaler(
    name: str, namespace: str, autoscaling: Autoscaling, fewest: int, most: int
) -> tuple[Kind, Object]:
    """Returns the kind and the spec of the autoscaler of the Deployment `name`."""
    behavior = {**BEHAVIOR}
    if autoscaling.behavior:
        behavior |= autoscaling.behavior.model_dump(by_alias=True, exclude_unset=True)
    target = {"apiVersion": DEPLOYMENT.api_version, "kind": DEPLOYMENT.name, "name": name}
    if autoscaling.engine == "HPA":
        return AUTOSCALER, {
            "scaleTargetRef": target,
            "minReplicas": fewest,
            "maxReplicas": most,
            "metrics": [_metric(metric) for metric in autoscaling.metrics],
            "behavior": behavior,
        }
    triggers = [_trigger(metric, name, namespace) for metric in autoscaling.metrics]
    triggers += autoscaling.triggers
    fallback = {
        "failureThreshold": 3,
        "replicas": max(1, fewest),
        "behavior": "currentReplicasIfHigher",
    }
    # KEDA refuses a fallback of the kubelet's metrics.
    has_fallback = any(trigger.get("type") not in ("cpu", "memory") for trigger in triggers)
    return SCALED_OBJECT, {
        "scaleTargetRef": target,
        "minReplicaCount": fewest,
        "maxReplicaCount": most,
        "pollingInterval": 15,
        **({"fallback": fallback} if has_fallback else {}),
        "advanced": {
            "horizontalPodAutoscalerConfig": {
                "name": keda_autoscaler_name(name),
                "behavior": behavior,
            }
        },
        "triggers": triggers,
    }


def keda_autoscaler_name(name: str) -> str:
    """Returns the name of the HorizontalPodAutoscaler that KEDA makes for a Deployment."""
    return f"keda-{name}"


def _metric(metric: Metric) -> Object:
    if metric.type == "CPU":
        target = {"type": "Utilization", "averageUtilization": _percent(metric)}
        return {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    name, _ = METRICS[metric.type]
    target = {"type": "AverageValue", "averageValue": canonical_quantity(metric.target)}
    return {"type": "Pods", "pods": {"metric": {"name": name}, "target": target}}


def _trigger(metric: Metric, name: str, namespace: str) -> Object:
    if metric.type == "CPU":
        value = str(_percent(metric))
        return {"type": "cpu", "metricType": "Utilization", "metadata": {"value": value}}
    _, gauge = METRICS[metric.type]
    return {
        "type": "metrics-api",
        "metadata": {
            # KEDA asks each pod of the Service. It divides the sum by the replicas; the average,
            # its default, would be divided twice.
            "url": f"http://{name}.{namespace}.svc:{PORTS['admin']}/metrics",
            "aggregateFromKubeServiceEndpoints": "true",
            "aggregationType": "sum",
            "format": "prometheus",
            "valueLocation": gauge,
            "targetValue": f"{quantity_value(metric.target):f}",
        },
    }


def _percent(metric: Metric) -> int:
    value = quantity_value(metric.target)
    if value % 1:
        raise PlanError(
            "InvalidObject",
            f"spec.autoscaling.metrics: the target of CPU is a percentage, as 70, received "
            f"{metric.target!r}.",
        )
    return int(value)

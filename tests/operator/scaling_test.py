"""The objects that scale, as KEDA's and Kubernetes's documents have them."""

from keras_deepseek.operator.api import Autoscaling
from keras_deepseek.operator.kinds import AUTOSCALER, SCALED_OBJECT
from keras_deepseek.operator.scaling import keda_autoscaler_name, make_scaler

METRICS = [
    {"type": "RequestsPerSecond", "target": 1000},
    {"type": "QueueTime", "target": "0.05"},
    {"type": "CPU", "target": 70},
]


def scaler(**fields):
    autoscaling = Autoscaling.model_validate({"maxReplicas": 9, "metrics": METRICS, **fields})
    return make_scaler("digits", "team", autoscaling, 2)


def test_autoscaler():
    kind, spec = scaler(behavior={"scaleDown": {"selectPolicy": "Disabled"}})
    assert kind is AUTOSCALER
    requests, queue, cpu = spec["metrics"]
    assert requests["pods"]["metric"]["name"] == "http_requests_per_second"
    assert requests["pods"]["target"] == {"type": "AverageValue", "averageValue": "1k"}
    assert queue["pods"]["target"]["averageValue"] == "50m"
    assert cpu["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}
    assert spec["behavior"]["scaleDown"] == {"selectPolicy": "Disabled"}
    assert spec["behavior"]["scaleUp"]["policies"][0]["value"] == 100


def test_scaled_object():
    kind, spec = scaler(engine="KEDA", triggers=[{"type": "cron", "metadata": {}}])
    assert kind is SCALED_OBJECT
    requests, queue, cpu, cron = spec["triggers"]
    assert requests["metadata"]["url"] == "http://digits.team.svc:8502/metrics"
    assert requests["metadata"]["aggregationType"] == "sum"
    assert requests["metadata"]["targetValue"] == "1000"
    assert queue["metadata"]["targetValue"] == "0.05"
    assert (cpu["type"], cron["type"]) == ("cpu", "cron")
    name = spec["advanced"]["horizontalPodAutoscalerConfig"]["name"]
    assert name == keda_autoscaler_name("digits")

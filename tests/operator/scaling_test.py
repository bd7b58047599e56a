"""The objects that scale, as KEDA's and Kubernetes's documents have them."""

import pytest

from keras_deepseek.operator.api import Autoscaling
from keras_deepseek.operator.kinds import AUTOSCALER, SCALED_OBJECT
from keras_deepseek.operator.problems import PlanError
from keras_deepseek.operator.scaling import keda_autoscaler_name, make_scaler

CPU = {"type": "CPU", "target": 70}
METRICS = [
    {"type": "RequestsPerSecond", "target": 1000},
    {"type": "QueueTime", "target": "0.05"},
    CPU,
]


def scaler(**fields):
    autoscaling = Autoscaling.model_validate({"maxReplicas": 9, "metrics": METRICS, **fields})
    return make_scaler("digits", "team", autoscaling, 2, 9)


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


@pytest.mark.parametrize(
    ("triggers", "has_fallback"),
    [([], False), ([{"type": "memory"}], False), ([{"type": "cron"}], True)],
)
def test_keda_takes_no_fallback_for_the_metrics_of_the_kubelet(triggers, has_fallback):
    _, spec = scaler(engine="KEDA", metrics=[CPU], triggers=triggers)
    assert ("fallback" in spec) == has_fallback
    assert "fallback" in scaler(engine="KEDA")[1]


@pytest.mark.parametrize("engine", ["HPA", "KEDA"])
def test_target_of_cpu_is_a_percentage(engine):
    with pytest.raises(PlanError, match="a percentage, as 70, received '50m'"):
        scaler(engine=engine, metrics=[{**CPU, "target": "50m"}])

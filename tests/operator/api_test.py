"""The checks of a `ModelDeployment` in Python. The nightly test compares the API server's."""

import pytest
from pydantic import ValidationError

from keras_deepseek.operator import ModelDeployment
from keras_deepseek.operator.api import find_fault

CPU = [{"type": "CPU", "target": 50}]
BAD = {
    "minReplicas is above": {"autoscaling": {"minReplicas": 3, "maxReplicas": 2, "metrics": CPU}},
    "minReplicas 0 needs": {"autoscaling": {"minReplicas": 0, "maxReplicas": 2, "metrics": CPU}},
    "triggers need": {"autoscaling": {"maxReplicas": 2, "metrics": CPU, "triggers": [{}]}},
    "must be above zero": {
        "autoscaling": {"maxReplicas": 2, "metrics": [{"type": "CPU", "target": "0"}]}
    },
    "both 0": {"rollout": {"maxSurge": 0}},
    "needs a route": {"canary": {"weight": 10}},
    "needs a claim": {"model": {"uri": "pvc://models"}},
    "needs a digest": {"model": {"uri": "oci://registry/model:latest"}},
    "needs a scheme": {"model": {"uri": "models"}},
    "not a quantity": {"resources": {"limits": {"cpu": "1x"}}},
    "named twice": {"regions": [{"name": "eu"}, {"name": "eu"}]},
    "without '..'": {"model": {"uri": "pvc://models/a/../b"}},
    "should match pattern": {"model": {"uri": "s3://models/a", "name": "a/b"}},
    "of a region is above": {
        "autoscaling": {"maxReplicas": 2, "metrics": CPU},
        "regions": [{"name": "eu", "minReplicas": 3}],
    },
    "0 of a region needs": {
        "autoscaling": {"maxReplicas": 2, "metrics": CPU},
        "regions": [{"name": "eu", "minReplicas": 0}],
    },
    "a number or a percentage": {"rollout": {"maxSurge": -1}},
    "valid integer": {"replicas": "3"},
    "Extra inputs": {"replica": 3},
}


@pytest.mark.parametrize("message", BAD)
def test_refuses(deployment, message):
    with pytest.raises(ValidationError, match=message):
        ModelDeployment.model_validate(deployment(**BAD[message]))


@pytest.mark.parametrize("name", ["a.b", "A", "-a", "1a", "a" * 57])
def test_refuses_names_that_fit_no_service(deployment, name):
    with pytest.raises(ValidationError):
        ModelDeployment.model_validate(deployment(name))


def test_takes_snake_case_in_python():
    spec = {"autoscaling": {"max_replicas": 3, "metrics": CPU}}
    model_deployment = ModelDeployment.model_validate(
        {"metadata": {"name": "digits"}, "spec": spec}
    )
    assert model_deployment.spec.autoscaling.max_replicas == 3
    assert model_deployment.model_dump(by_alias=True)["spec"]["autoscaling"]["maxReplicas"] == 3


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"replica": 3}, "spec: unknown field 'replica'."),
        ({"autoscaling": {"max_replicas": 3}}, "spec.autoscaling.maxReplicas: Field required."),
        (
            {"resources": {"limits": {"cpu": 1.5}}},
            "spec.resources.limits.cpu: must be an integer or a text",
        ),
        ({"resources": {"limits": {"cpu": "x"}}}, "spec.resources.limits.cpu: 'x' is not a quant"),
        ({"canary": {"weight": 1}}, "spec: a canary needs a route, which splits requests."),
    ],
)
def test_a_fault_names_its_field_as_yaml_does(deployment, spec, fault):
    assert find_fault(ModelDeployment, deployment(**spec)).startswith(fault)
    assert find_fault(ModelDeployment, deployment()) is None

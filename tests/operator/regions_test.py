"""The region of a cluster, and its settings in place of those of the object."""

import pytest

from keras_deepseek.operator.api import ModelDeploymentSpec
from keras_deepseek.operator.problems import PlanError
from keras_deepseek.operator.regions import check_region_of_children, find_region, with_region

CPU = [{"type": "CPU", "target": 50}]


def spec(**fields):
    return ModelDeploymentSpec.model_validate(fields)


def test_finds_the_region():
    deployment_spec = spec(regions=[{"name": "eu"}, {"name": "us"}])
    assert find_region(deployment_spec, "us").name == "us"
    assert find_region(deployment_spec, "asia") is None
    assert find_region(spec(), None) is None


def test_operator_without_a_region_says_so():
    with pytest.raises(PlanError, match="--region NAME") as caught:
        find_region(spec(regions=[{"name": "eu"}]), None)
    assert caught.value.problem.reason == "RegionUnknown"


def test_overrides():
    scaling = {"minReplicas": 1, "maxReplicas": 9, "metrics": CPU}
    region = {"name": "eu", "replicas": 4, "maxReplicas": 5}
    whole = spec(replicas=2, autoscaling=scaling, regions=[region])
    overridden = with_region(whole, whole.regions[0])
    assert overridden.replicas == 4
    assert (overridden.autoscaling.min_replicas, overridden.autoscaling.max_replicas) == (1, 5)


def test_limits_without_autoscaling():
    whole = spec(regions=[{"name": "eu", "minReplicas": 2}])
    with pytest.raises(PlanError, match=r"region 'eu' sets minReplicas without spec\.autoscaling"):
        with_region(whole, whole.regions[0])


@pytest.mark.parametrize("other", ["EU", None])
def test_children_of_another_region(other):
    annotations = {"deepseek.io/region": other} if other else {}
    children = [{"metadata": {"annotations": annotations}}]
    with pytest.raises(PlanError, match="left as it is") as caught:
        check_region_of_children(children, "eu")
    assert caught.value.problem.reason == "RegionChanged"
    if other:
        check_region_of_children(children, other)

"""The state of a rollout, in the words of a Deployment's status."""

import pytest

from keras_deepseek.operator.problems import rollout_problem, rollout_waits_for

DONE = {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ({}, None),
        ({"observedGeneration": 1}, "has not started the rollout"),
        ({"updatedReplicas": 1}, "2 pods of the old version still run"),
        ({"availableReplicas": 2}, "2 of 3 pods are available"),
    ],
)
def test_rollout_waits(status, text):
    message = rollout_waits_for({"metadata": {"generation": 2}, "status": DONE | status}, 3)
    assert message is None if text is None else message.endswith(text)


def test_deployment_that_is_not_there_waits():
    assert rollout_waits_for({}, 0) is not None


@pytest.mark.parametrize(
    ("kind", "status", "is_problem"),
    [
        ("Progressing", "False", True),
        ("ReplicaFailure", "True", True),
        ("Progressing", "True", False),
        ("Available", "False", False),
    ],
)
def test_problem(kind, status, is_problem):
    condition = {"type": kind, "status": status, "reason": "Why"}
    problem = rollout_problem({"status": {"conditions": [condition]}})
    assert problem == (("Why", "The rollout takes too long.") if is_problem else None)

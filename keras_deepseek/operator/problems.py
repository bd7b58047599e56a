"""Problems that keep an object from being ready, and what its rollout waits for."""

from typing import NamedTuple

from keras_deepseek.operator.kinds import Object


class Problem(NamedTuple):
    """The reason and the message of a condition."""

    reason: str
    """In CamelCase."""
    message: str
    """What is wrong, and what to do."""


class PlanError(Exception):
    """A problem that ends the planning of an object.

    Args:
        reason: The reason, in CamelCase.
        message: What is wrong, and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(reason, message)


def rollout_waits_for(deployment: Object, fewest: int, *, was_complete: bool = False) -> str | None:
    """Returns what a rollout waits for, or `None` if it is complete.

    Args:
        deployment: The Deployment, or an empty object if there is none.
        fewest: The pods that must be available.
        was_complete: True if it was complete, and only the replicas have changed since.
    """
    status = deployment.get("status", {})
    observed = status.get("observedGeneration", 0)
    if observed < deployment.get("metadata", {}).get("generation", 1) and not (
        observed and was_complete
    ):
        return "Kubernetes has not started the rollout"
    updated, all_pods = status.get("updatedReplicas", 0), status.get("replicas", 0)
    if updated < all_pods:
        return f"{all_pods - updated} pods of the old version still run"
    if (available := status.get("availableReplicas", 0)) < fewest:
        return f"{available} of {fewest} pods are available"
    return None


def rollout_problem(deployment: Object) -> Problem | None:
    """Returns why Kubernetes has given a rollout up, or `None`."""
    for condition in deployment.get("status", {}).get("conditions", []):
        match condition["type"], condition["status"]:
            case ("Progressing", "False") | ("ReplicaFailure", "True"):
                message = condition.get("message") or "The rollout takes too long."
                return Problem(condition.get("reason", "Unknown"), message)
    return None

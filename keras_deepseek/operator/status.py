"""The status of a `ModelDeployment`, in the words that kstatus, Flux and Argo CD read."""

from collections.abc import Sequence
from datetime import UTC, datetime

from keras_deepseek.operator.kinds import AUTOSCALER, DEPLOYMENT, Object
from keras_deepseek.operator.plan import Live, Plan, Problem
from keras_deepseek.operator.scaling import keda_autoscaler_name

_SCALING_CONDITIONS = ("ScalingActive", "ScalingLimited")


def make_status(
    deployment: Object,
    plan: Plan,
    live: Live,
    pods: Sequence[Object] = (),
    failure: Problem | None = None,
    region: str | None = None,
    now: datetime | None = None,
) -> Object:
    """Returns the status of an object.

    Args:
        deployment: The object.
        plan: Its plan.
        live: Its children.
        pods: Its pods, if they are not all ready; their errors become the message.
        failure: The reason and message of a failed apply.
        region: The region of the operator.
        now: The time of a transition. Defaults to `None`: the present.
    """
    name = deployment["metadata"]["name"]
    child = live.get((DEPLOYMENT, name), {})
    found = child.get("status", {})
    problem = plan.problem or failure or _rollout_problem(found, pods)
    waiting = None if plan.notice else _waiting(child, plan.fewest_replicas)
    generation = deployment["metadata"].get("generation", 0)
    conditions: list[Object] = []

    def add(kind: str, status: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": status, "reason": reason, "message": message}
        conditions.append({**condition, "observedGeneration": generation})

    if problem:
        add("Ready", "False", *problem)
        add("Reconciling", "False", *problem)
        add("Stalled", "True", *problem)
    elif waiting:
        message = "; ".join([waiting, *_pod_errors(pods)])
        add("Ready", "False", "Progressing", message)
        add("Reconciling", "True", "Progressing", message)
        add("Stalled", "False", "Progressing", "")
    else:
        message = plan.notice or f"{found.get('readyReplicas', 0)} replicas are ready."
        reason = "NotInRegion" if plan.notice else "Ready"
        add("Ready", "True", reason, message)
        add("Reconciling", "False", reason, "")
        add("Stalled", "False", reason, "")
    for condition in _scaling_conditions(name, live):
        add(*condition)
    selector = child.get("spec", {}).get("selector", {}).get("matchLabels", {})
    return {
        "observedGeneration": generation,
        "replicas": found.get("replicas", 0),
        "readyReplicas": found.get("readyReplicas", 0),
        "selector": ",".join(f"{key}={value}" for key, value in selector.items()),
        **({"region": region} if region else {}),
        "conditions": _with_times(conditions, deployment, now or datetime.now(UTC)),
    }


def _waiting(child: Object, fewest: int) -> str | None:
    """Returns what a rollout waits for, or `None` if it is complete."""
    status = child.get("status", {})
    if status.get("observedGeneration", 0) < child.get("metadata", {}).get("generation", 1):
        return "The Deployment's change was not seen yet"
    updated, all_pods = status.get("updatedReplicas", 0), status.get("replicas", 0)
    if updated < all_pods:
        return f"{all_pods - updated} pods of the old version still run"
    if (available := status.get("availableReplicas", 0)) < fewest:
        return f"{available} of {fewest} pods are available"
    return None


def _rollout_problem(status: Object, pods: Sequence[Object]) -> Problem | None:
    for condition in status.get("conditions", []):
        if condition["type"] == "Progressing" and condition["status"] == "False":
            message = condition.get("message", "The rollout takes too long.")
            return condition["reason"], " ".join([message, *_pod_errors(pods)])
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return condition["reason"], condition.get("message", "No pod could be made.")
    return None


def _pod_errors(pods: Sequence[Object]) -> list[str]:
    """Returns the different errors of pods: not scheduled, no image, or the line of `serve`."""
    errors: dict[str, None] = {}
    for pod in pods:
        status = pod.get("status", {})
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                errors[f"{condition.get('reason')}: {condition.get('message')}"] = None
        for container in status.get("containerStatuses", []):
            waiting = container.get("state", {}).get("waiting", {})
            ended = container.get("lastState", {}).get("terminated", {})
            ended = container.get("state", {}).get("terminated", ended)
            message = (ended.get("message") or waiting.get("message") or "").strip()
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                last_line = message.splitlines()[-1] if message else ""
                if "unrecognized arguments" in last_line:
                    last_line += ". Use a serving image as new as the operator, or mend spec.args"
                errors[f"{waiting['reason']}: {last_line}"] = None
    return list(errors)


def _scaling_conditions(name: str, live: Live) -> list[tuple[str, str, str, str]]:
    for autoscaler_name in (name, keda_autoscaler_name(name)):
        if autoscaler := live.get((AUTOSCALER, autoscaler_name)):
            found = autoscaler.get("status", {}).get("conditions", [])
            return [
                (each["type"], each["status"], each.get("reason", "Unknown"), each["message"])
                for each in found
                if each["type"] in _SCALING_CONDITIONS
            ]
    return []


def _with_times(conditions: list[Object], deployment: Object, now: datetime) -> list[Object]:
    """Adds the time of the last change of each condition's status."""
    before = {each["type"]: each for each in deployment.get("status", {}).get("conditions", [])}
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            **condition,
            "lastTransitionTime": old["lastTransitionTime"]
            if (old := before.get(condition["type"])) and old["status"] == condition["status"]
            else time,
        }
        for condition in conditions
    ]

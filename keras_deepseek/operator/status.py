"""The status of a `ModelDeployment`, in the words that kstatus, Flux and Argo CD read."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from keras_deepseek.operator.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    EVENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    MODEL_DEPLOYMENT,
    SCALED_OBJECT,
    Object,
)
from keras_deepseek.operator.plan import KEPT_ANNOTATION, Live, Plan
from keras_deepseek.operator.problems import Problem, rollout_problem, rollout_waits_for
from keras_deepseek.operator.scaling import keda_autoscaler_name

_SCALING_CONDITIONS = ("ScalingActive", "ScalingLimited")
_ADVICE = {
    "FailedGetPodsMetric": "Install prometheus-adapter with the rules of kubernetes/examples, or "
    "use engine: KEDA.",
    "FailedGetResourceMetric": "Set spec.resources.requests.cpu, and install metrics-server.",
}
"""Advice for a failed scaling, by the autoscaler's reason."""
_STARTING = (None, "ContainerCreating", "PodInitializing")

_State = tuple[str, str, str]
"""The status, reason and message of a condition."""


def make_status(
    model_deployment: Object,
    plan: Plan,
    live: Live,
    pods: Sequence[Object] = (),
    failure: Problem | None = None,
    region: str | None = None,
    now: datetime | None = None,
) -> Object:
    """Returns the status of an object.

    Args:
        model_deployment: The object.
        plan: The plan of the object.
        live: The children of the object.
        pods: The pods, if not all are ready. Their errors become the message.
        failure: The reason and message of a failed apply.
        region: The region of the operator.
        now: The time of a transition. Defaults to `None`: the present.
    """
    name = model_deployment["metadata"]["name"]
    deployment = live.get((DEPLOYMENT, name), {})
    deployment_status = deployment.get("status", {})
    generation = model_deployment["metadata"].get("generation", 0)
    scaling = _scaling_states(name, live)
    last = find_condition(model_deployment.get("status", {}), "Ready")
    # If the object was ready and its spec is the same, only an autoscaler has changed the number of
    # replicas, and that is no rollout.
    was_ready = last.get("status") == "True" and last.get("observedGeneration") == generation
    states = _rollout_states(plan, live, pods, failure, was_ready=was_ready)
    _, ready_reason, _ = states["Ready"]
    if ready_reason == "Ready":
        states["Ready"] = _ready_state(deployment, scaling)
    conditions: list[Object] = [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
        }
        for kind, (status, reason, message) in (states | scaling).items()
    ]
    selector = deployment.get("spec", {}).get("selector", {}).get("matchLabels", {})
    return {
        "observedGeneration": generation,
        "replicas": deployment_status.get("replicas", 0),
        "readyReplicas": deployment_status.get("readyReplicas", 0),
        "selector": ",".join(f"{key}={value}" for key, value in selector.items()),
        **({"region": region} if region else {}),
        "conditions": _with_times(conditions, model_deployment, now or datetime.now(UTC)),
    }


def make_event(model_deployment: Object, level: str, reason: str, message: str) -> Object:
    """Returns an Event, as `kubectl describe` shows it. Its name is a hash of what it says.

    Args:
        model_deployment: The object.
        level: `"Normal"` or `"Warning"`.
        reason: The reason, in CamelCase.
        message: A sentence, of which 1,024 characters are kept.
    """
    metadata, time = model_deployment["metadata"], _time(datetime.now(UTC))
    digest = hashlib.sha256("\n".join([metadata["uid"], reason, message]).encode()).hexdigest()
    owner = {"apiVersion": MODEL_DEPLOYMENT.api_version, "kind": MODEL_DEPLOYMENT.name}
    namespace = {"namespace": metadata["namespace"]}
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {**namespace, "name": f"{metadata['name']}.{digest[:16]}"},
        "involvedObject": {**owner, **namespace, "name": metadata["name"], "uid": metadata["uid"]},
        "type": level,
        "reason": reason,
        "message": message[:1024],
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": {"component": "keras-deepseek-operator"},
    }


def find_condition(status: Object, kind: str) -> Object:
    """Returns a condition of a status, or an empty one."""
    conditions: list[Object] = status.get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _rollout_states(
    plan: Plan, live: Live, pods: Sequence[Object], failure: Problem | None, *, was_ready: bool
) -> dict[str, _State]:
    """Returns the states of kstatus's conditions."""
    problem = plan.problem or failure or _child_problem(plan, live, pods)
    if problem:
        state = ("False", *problem)
        return {"Ready": state, "Reconciling": state, "Stalled": ("True", *problem)}
    waiting = []
    for name, fewest in plan.fewest_replicas.items():
        child = live.get((DEPLOYMENT, name), {})
        if text := rollout_waits_for(child, fewest, was_complete=was_ready):
            waiting.append(_prefix(plan, name) + text)
    if waiting:
        message = "; ".join([*waiting, *_pod_errors(pods)])
        return {
            "Ready": ("False", "Progressing", message),
            "Reconciling": ("True", "Progressing", message),
            "Stalled": ("False", "Progressing", ""),
        }
    reason = "NotInRegion" if plan.notice else "Ready"
    settled = ("False", reason, "")
    ready = ("True", reason, plan.notice or "")
    return {"Ready": ready, "Reconciling": settled, "Stalled": settled}


def _ready_state(deployment: Object, scaling: dict[str, _State]) -> _State:
    """Returns the state of the condition `Ready` when all pods are ready."""
    count = deployment.get("status", {}).get("readyReplicas", 0)
    message = f"{count} replica{' is' if count == 1 else 's are'} ready."
    reason = "Ready"
    annotations = deployment.get("metadata", {}).get("annotations", {})
    if (replicas := annotations.get(KEPT_ANNOTATION)) is not None:
        reason = "ReplicasKept"
        message += f" Autoscaling left them, above spec.replicas ({replicas}), and they stay "
        message += "until that field changes or kubectl scales the Deployment."
    is_active, scaling_reason, why = scaling.get("ScalingActive", ("True", "", ""))
    if is_active == "False" and scaling_reason != "ScalingDisabled":  # At zero replicas.
        message += f" Autoscaling does not work: {why}"
    return ("True", reason, message)


def _prefix(plan: Plan, name: str) -> str:
    is_stable = name == next(iter(plan.fewest_replicas))
    return "" if is_stable else f"The canary {name!r}: "


def _child_problem(plan: Plan, live: Live, pods: Sequence[Object]) -> Problem | None:
    for name, fewest in plan.fewest_replicas.items():
        child = live.get((DEPLOYMENT, name), {})
        if fewest and child.get("spec", {}).get("replicas") == 0:
            message = (
                "Someone has set 0 replicas, where no autoscaler works. Start it again by: "
                f"kubectl scale deployments/{name} --replicas={fewest}"
            )
            return Problem("ScaledToZero", _prefix(plan, name) + message)
        if problem := rollout_problem(child):
            message = " ".join([problem.message, *_pod_errors(pods)])
            return Problem(problem.reason, _prefix(plan, name) + message)
    for (kind, name), child in live.items():
        if kind in (HTTP_ROUTE, GRPC_ROUTE):
            for parent in child.get("status", {}).get("parents", []):
                accepted = find_condition(parent, "Accepted")
                if accepted.get("status") == "False":
                    refusal = f"The Gateway refuses the {kind.name} {name!r}"
                    message = f"{refusal}: {accepted.get('reason')}: {accepted.get('message')}"
                    return Problem("RouteNotAccepted", message)
    return None


def _pod_errors(pods: Sequence[Object]) -> list[str]:
    """Returns each error of pods once: not scheduled, no image, or the line of `serve`."""
    errors: dict[str, None] = {}
    for pod in pods:
        status = pod.get("status", {})
        scheduled = find_condition(status, "PodScheduled")
        if scheduled.get("status") == "False":
            errors[f"{scheduled.get('reason')}: {scheduled.get('message')}"] = None
        for part in ("initContainerStatuses", "containerStatuses"):
            for container in status.get(part, []):
                if error := _container_error(container):
                    errors[error] = None
    return list(errors)


def _container_error(container: Object) -> str | None:
    """Returns why a container does not run, or why it failed before its last start, or `None`."""
    waiting = container.get("state", {}).get("waiting", {})
    ended = container.get("lastState", {}).get("terminated", {})
    ended = container.get("state", {}).get("terminated", ended)
    has_failed = ended.get("exitCode", 0) != 0 and not container.get("ready")
    if waiting.get("reason") in _STARTING and not has_failed:
        return None
    parts = [] if waiting.get("reason") in _STARTING else [waiting["reason"]]
    if has_failed and ended.get("reason") not in (None, "Error"):
        parts.append(ended["reason"])
    message = (ended.get("message") or waiting.get("message") or "").strip()
    line = message.splitlines()[-1] if message else ""
    if "unrecognized arguments" in line:
        line += ". Use a serving image as new as the operator, or mend spec.args"
    if ended.get("reason") == "OOMKilled":
        line = "Its memory is too small: raise spec.resources.limits.memory"
    code = f" (exit code {ended['exitCode']})" if has_failed else ""
    return ": ".join([*parts, line]) + code


def _scaling_states(name: str, live: Live) -> dict[str, _State]:
    """Returns the states of the autoscaler's conditions, with advice where scaling fails."""
    scaled = find_condition(live.get((SCALED_OBJECT, name), {}).get("status", {}), "Ready")
    if scaled.get("status") == "False":
        return {
            "ScalingActive": ("False", scaled.get("reason", "Unknown"), scaled.get("message", ""))
        }
    autoscaler = live.get((AUTOSCALER, name)) or live.get((AUTOSCALER, keda_autoscaler_name(name)))
    conditions = (autoscaler or {}).get("status", {}).get("conditions", [])
    states = {}
    for condition in conditions:
        reason, message = condition.get("reason", "Unknown"), condition.get("message", "")
        if condition["type"] == "ScalingActive" and reason in _ADVICE:
            message = f"{message.rstrip('.')}. {_ADVICE[reason]}"
        if condition["type"] in _SCALING_CONDITIONS:
            states[condition["type"]] = (condition["status"], reason, message)
    return states


def _with_times(conditions: list[Object], model_deployment: Object, now: datetime) -> list[Object]:
    """Returns the conditions with the time at which the status of each has last changed."""
    old_conditions = {
        condition["type"]: condition
        for condition in model_deployment.get("status", {}).get("conditions", [])
    }
    time = _time(now)
    return [
        {
            **condition,
            "lastTransitionTime": old["lastTransitionTime"]
            if (old := old_conditions.get(condition["type"]))
            and old["status"] == condition["status"]
            else time,
        }
        for condition in conditions
    ]


def _time(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")

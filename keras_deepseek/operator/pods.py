"""The pods of a `ModelDeployment`: the template, and the arguments of `keras-deepseek serve`."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from keras_deepseek.operator.api import Batching, Model, ModelDeploymentSpec, Resources, Rollout
from keras_deepseek.operator.fields import canonical_quantity, quantity_value
from keras_deepseek.operator.kinds import PORTS, Object
from keras_deepseek.operator.problems import PlanError

_CONTAINER = "server"

_MODEL_PATH = "/models/model"
_CACHE_PATH = "/cache"
_LIMITS = {"unready_seconds": "20", "connection_seconds": "15", "grace_seconds": "30"}
"""Limits of `serve` in a pod. A connection lives for a shorter time than a stopping pod is unready.
So all clients have moved to other pods before the pod stops, and no request is lost."""

_OWN_FLAGS = {"--name": "spec.model.name", "--host": None} | {
    f"--{port}-port": None for port in PORTS
}
"""The flags of `serve` that the operator sets, each with the field that sets it."""

_MERGE_KEYS = ("mountPath", "topologyKey", "name")
"""The keys that tell apart the items of a list in a pod template."""

_PERIOD = 5  # Seconds between two probes of a pod's start or readiness.
_STOP_MARGIN_SECONDS = 10

_PROBE_ACTIONS = frozenset(("exec", "grpc", "httpGet", "tcpSocket"))


def check_arguments(args: Sequence[str], field: str) -> None:
    """Raises a `PlanError` for arguments of `serve` that the operator sets, or can't read.

    Args:
        args: Further arguments of `serve`.
        field: The field of the object that has the arguments.
    """
    for flag in (word.partition("=")[0] for word in args):
        if flag in _OWN_FLAGS:
            advice = f"Set {_OWN_FLAGS[flag]} instead" if _OWN_FLAGS[flag] else "Remove it"
            message = f"{field}: {flag} is set by the operator. {advice}."
            raise PlanError("InvalidObject", message)
    for name, value in _given_limits(args).items():
        if name in _LIMITS and not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", value):
            message = f"{field}: --limit {name} must be seconds as a number, received {value!r}."
            raise PlanError("InvalidObject", message)


def make_pod_template(
    name: str,
    labels: dict[str, str],
    model: Model | None,
    image: str,
    args: Sequence[str],
    spec: ModelDeploymentSpec,
    templates: Mapping[str, Object],
) -> Object:
    """Returns the pod template of a Deployment.

    Args:
        name: The model's name in URLs, unless `model` has one.
        labels: The labels that select the pods.
        model: The model, or `None` if the image holds it.
        image: The serving image.
        args: Further arguments of `serve`.
        spec: The object's other settings.
        templates: Partial templates by the field that has them. They are merged in this order.

    Raises:
        PlanError: A partial template does not fit.
    """
    volume, mount, source = _model_volume(model)
    limits = {**_LIMITS, **_given_limits(args)}
    stop_seconds = float(limits["unready_seconds"]) + float(limits["grace_seconds"])
    arguments = [source, "--name", (model.name if model else None) or name]
    arguments += ["--cache-dir", _CACHE_PATH] if volume is None and model else []
    arguments += [*_common_arguments(args, spec.batching), *args]
    template: Object = {
        "metadata": {},
        "spec": {
            "containers": [_container(image, arguments, [mount] if mount else [], spec)],
            # The variables of other services would look like flags of `serve`.
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": math.ceil(stop_seconds) + _STOP_MARGIN_SECONDS,
            "topologySpreadConstraints": [
                _spread(topology_key, labels)
                for topology_key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
            ],
            "volumes": [
                *([volume] if volume else []),
                {"name": "tmp", "emptyDir": {}},
                {"name": "cache", "emptyDir": {}},
            ],
        },
    }
    for field, partial in templates.items():
        template = merge(template, partial, field)
        if not template.get("spec", {}).get("containers"):
            raise PlanError("TemplateBroken", f"{field} must not remove spec.containers.")
    for container in template["spec"]["containers"]:
        if isinstance(container.get("resources"), dict):
            path = f"spec.template.spec.containers[{container['name']}].resources"
            container["resources"] = _canonical(container["resources"], path)
    merged: Object = merge(template, {"metadata": {"labels": labels}})
    return merged


def _spread(topology_key: str, labels: dict[str, str]) -> Object:
    """Returns a constraint that spreads the pods of a version over zones or nodes, if possible."""
    return {
        "maxSkew": 1,
        "topologyKey": topology_key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
        "matchLabelKeys": ["pod-template-hash"],
    }


def _container(
    image: str, args: list[str], mounts: list[Object], spec: ModelDeploymentSpec
) -> Object:
    start_seconds = (spec.rollout or Rollout()).start_seconds
    ready = {"httpGet": {"path": "/v2/health/ready", "port": "admin"}, "periodSeconds": _PERIOD}
    return {
        "name": _CONTAINER,
        "image": image,
        "args": args,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": port, "containerPort": number} for port, number in PORTS.items()],
        "startupProbe": {**ready, "failureThreshold": math.ceil(start_seconds / _PERIOD)},
        "readinessProbe": {**ready, "failureThreshold": 1, "timeoutSeconds": 3},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": "admin"},
            "periodSeconds": 10,
            "failureThreshold": 6,
            "timeoutSeconds": 5,
        },
        "resources": _resources(spec.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # The one line of an error of `serve` becomes the message of the terminated container.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *mounts,
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": _CACHE_PATH},
        ],
    }


def merge(base: Any, partial: Any, path: str = "spec.template") -> Any:
    """Returns `base` with a partial object merged into it, as `kubectl` merges pod templates.

    Objects are merged by field, and lists by the name of their items. A volume replaces the one of
    its name, and the action of a probe replaces any other. `None` removes a field. All else is
    replaced. `path` names the place in messages.

    Raises:
        PlanError: A list or an object meets something else, or an item has no name.
    """
    if partial is None or base is None:
        return partial
    if type(base) is not type(partial) and isinstance(base, dict | list):
        kind = "an object" if isinstance(base, dict) else "a list"
        raise PlanError("TemplateBroken", f"{path} must be {kind}, received {partial!r}.")
    if isinstance(base, dict):
        dropped = _PROBE_ACTIONS if _PROBE_ACTIONS & partial.keys() else frozenset()
        merged = {key: value for key, value in base.items() if key not in dropped}
        for key, value in partial.items():
            merged[key] = merge(merged.get(key), value, f"{path}.{key}")
        return {key: value for key, value in merged.items() if value is not None}
    if isinstance(base, list) and (key := _merge_key(base)):
        items = {item[key]: item for item in base}
        for item in partial:
            match item:
                case {**fields} if isinstance(name := fields.get(key), str):
                    base_item = None if path.endswith(".volumes") else items.get(name)
                    items[name] = merge(base_item, item, f"{path}[{name}]")
                case _:
                    message = f"{path}: each item needs a {key}, received {item!r}."
                    raise PlanError("TemplateBroken", message)
        return list(items.values())
    return partial


def _merge_key(items: list[Any]) -> str | None:
    """Returns the key by which the items of a list are merged, or `None` to replace the list."""
    for key in _MERGE_KEYS:
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
    return None


def _model_volume(model: Model | None) -> tuple[Object | None, Object | None, str]:
    """Returns the model's volume, its mount, and the argument of `serve` that names the model."""
    scheme, _, location = model.uri.partition("://") if model else ("", "", "")
    mount: Object = {"name": "model", "mountPath": _MODEL_PATH, "readOnly": True}
    if scheme == "pvc":
        claim, _, path = location.partition("/")
        volume = {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        return volume, {**mount, "subPath": path.strip("/")}, _MODEL_PATH
    if scheme == "oci":
        image = {"reference": location, "pullPolicy": "IfNotPresent"}
        return {"name": "model", "image": image}, mount, _MODEL_PATH
    return None, None, model.uri if model else _MODEL_PATH


def _given_limits(args: Sequence[str]) -> dict[str, str]:
    """Returns the limits that the arguments of `serve` set."""
    words = [word.removeprefix("--limit=") for word in args if word.startswith("--limit=")]
    words += [word for flag, word in itertools.pairwise(args) if flag == "--limit"]
    return dict(word.split("=", 1) for word in words if "=" in word)


def _common_arguments(args: Sequence[str], batching: Batching | None) -> list[str]:
    """Returns the arguments of `serve` for addresses, limits that `args` leave out, and batches."""
    limits_in_args = _given_limits(args)
    limits = {name: value for name, value in _LIMITS.items() if name not in limits_in_args}
    batching = batching or Batching()
    latency = batching.target_latency
    flags = {
        "--max-batch-size": batching.max_batch_size,
        "--target-latency": None if latency is None else float(quantity_value(latency)),
        "--max-queue-rows": batching.max_queue_rows,
    }
    return [
        *("--host", "0.0.0.0"),
        *(word for port, number in PORTS.items() for word in (f"--{port}-port", str(number))),
        *(word for limit in limits.items() for word in ("--limit", "=".join(limit))),
        *(str(word) for flag in flags.items() if flag[1] is not None for word in flag),
    ]


def _resources(resources: Resources | None) -> Object:
    return {} if resources is None else resources.model_dump(exclude_unset=True)


def _canonical(resources: Any, path: str) -> Any:
    """Returns resources as the API server writes them, so that they compare equal to its own."""
    try:
        return {
            kind: {name: canonical_quantity(quantity) for name, quantity in quantities.items()}
            if kind in ("requests", "limits") and isinstance(quantities, dict)
            else quantities
            for kind, quantities in resources.items()
        }
    except ValueError as error:
        raise PlanError("TemplateBroken", f"{path}: {error}") from error

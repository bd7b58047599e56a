"""The CRD, and the objects that an operator would make, as YAML."""

import sys
from pathlib import Path
from typing import Any

import yaml

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator import api
from keras_deepseek.operator.crd import make_crd
from keras_deepseek.operator.kinds import AUTOSCALER, CHILDREN, DEPLOYMENT, SCALED_OBJECT, Object
from keras_deepseek.operator.plan import SCALE_MANAGER, Apply, Settings, canary_name, make_plan


def render_crd() -> str:
    """Returns the CustomResourceDefinition as YAML."""
    return _dump(make_crd())


def render_objects(file: str, settings: Settings) -> str:
    """Returns the objects that the operator would make, as YAML.

    Owner references are left out, because the owners do not exist yet. So are the replicas of what
    an autoscaler scales: with each apply they would undo its work. A canary's pods count as ready.

    Args:
        file: A YAML file of `ModelDeployment`s; `"-"` is the standard input.
        settings: The settings of the operator.

    Raises:
        InvalidInputError: The file can't be read, or an object is wrong.
    """
    documents = [document for document in _read(file) if document is not None]
    if not documents:
        raise InvalidInputError(f"{file} has no objects.")
    rendered: list[Object] = []
    expected = (api.API_VERSION, api.KIND)
    for document in documents:
        received = document if isinstance(document, dict) else {}
        if (received.get("apiVersion"), received.get("kind")) != expected:
            raise InvalidInputError(
                f"{file} has an object with apiVersion {received.get('apiVersion')!r} and kind "
                f"{received.get('kind')!r}. Expected {expected[0]!r} and {expected[1]!r}."
            )
        rendered += _objects(file, document, settings)
    return "---\n".join(map(_dump, rendered))


def _objects(file: str, deployment: Object, settings: Settings) -> list[Object]:
    """Returns the children of a `ModelDeployment` of a file, as they would be in a new cluster."""
    metadata = deployment.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidInputError(f"{file}: an object has no metadata.name.")
    deployment = {**deployment, "metadata": {**metadata, "uid": ""}}
    # A canary gets requests only once its pods are ready: here they are, more than any canary has.
    canary = {"metadata": {"ownerReferences": [{"uid": ""}]}, "status": {"readyReplicas": 10_000}}
    spec = deployment.get("spec")
    has_canary = isinstance(spec, dict) and "canary" in spec
    live = {(DEPLOYMENT, canary_name(metadata["name"])): canary} if has_canary else {}
    plan = make_plan(deployment, live, CHILDREN, settings)
    if plan.problem:
        raise InvalidInputError(f"{file}: {metadata['name']}: {plan.problem.message}")
    objects: dict[Any, Object] = {}
    replicas: dict[str, int] = {}
    # KEDA's URL of the Service holds the namespace.
    is_of_keda = any(step.kind == SCALED_OBJECT for step in plan.steps)
    has_namespace = "namespace" in metadata or is_of_keda
    for step in plan.steps:
        if not isinstance(step, Apply):
            continue
        if step.manager == SCALE_MANAGER:
            replicas[step.name] = step.body["spec"]["replicas"]
            continue
        body = {**step.body, "metadata": {**step.body["metadata"]}}
        del body["metadata"]["ownerReferences"]
        if not has_namespace:
            del body["metadata"]["namespace"]
        objects[step.kind, step.name] = body
    for name, count in replicas.items():
        if not {(AUTOSCALER, name), (SCALED_OBJECT, name)} & objects.keys():
            objects[DEPLOYMENT, name]["spec"]["replicas"] = count
    return list(objects.values())


def _read(file: str) -> list[Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return list(yaml.safe_load_all(text))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"Can't read {file}: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{file} is not YAML: {error}") from error


class _Dumper(yaml.SafeDumper):
    """A dumper that writes equal parts out, without YAML's anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(manifest: Object) -> str:
    text: str = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=100)
    return text

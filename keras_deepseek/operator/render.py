"""The CRD, and the objects that an operator would make, as YAML."""

import sys
from pathlib import Path
from typing import Any

import yaml

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator import api
from keras_deepseek.operator.crd import make_crd
from keras_deepseek.operator.kinds import CHILDREN, Object
from keras_deepseek.operator.plan import SCALE_MANAGER, Apply, Settings, make_plan


def render_crd() -> str:
    """Returns the CustomResourceDefinition as YAML."""
    return _dump(make_crd())


def render_objects(file: str, settings: Settings) -> str:
    """Returns the objects that the operator would make in an empty cluster, as YAML.

    Owner references are left out, because the owners do not exist yet.

    Args:
        file: A YAML file of `ModelDeployment`s; `"-"` is the standard input.
        settings: The settings of the operator.

    Raises:
        InvalidInputError: The file can't be read, or an object is wrong.
    """
    documents = [found for found in _read(file) if found is not None]
    if not documents:
        raise InvalidInputError(f"{file} has no objects.")
    rendered: list[Object] = []
    for found in documents:
        if not isinstance(found, dict) or found.get("kind") != api.KIND:
            kind = found.get("kind") if isinstance(found, dict) else found
            raise InvalidInputError(f"{file} has {kind!r}. Expected objects of kind {api.KIND}.")
        rendered += _objects(file, found, settings)
    return "---\n".join(map(_dump, rendered))


def _objects(file: str, deployment: Object, settings: Settings) -> list[Object]:
    metadata = deployment.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidInputError(f"{file}: an object has no metadata.name.")
    deployment = {**deployment, "metadata": {**metadata, "uid": ""}}
    plan = make_plan(deployment, {}, CHILDREN, settings)
    if plan.problem:
        raise InvalidInputError(f"{file}: {metadata['name']}: {plan.problem[1]}")
    objects: dict[Any, Object] = {}
    for step in plan.steps:
        if not isinstance(step, Apply):
            continue
        if step.manager == SCALE_MANAGER:
            objects[step.kind, step.name]["spec"]["replicas"] = step.body["spec"]["replicas"]
            continue
        body = {**step.body, "metadata": {**step.body["metadata"]}}
        del body["metadata"]["ownerReferences"]
        objects[step.kind, step.name] = body
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
        """Returns True: no part is an alias."""
        return True


def _dump(found: Object) -> str:
    text: str = yaml.dump(found, Dumper=_Dumper, sort_keys=False, width=100)
    return text

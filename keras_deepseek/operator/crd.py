"""The CustomResourceDefinition of `ModelDeployment`, made from the models of `api.py`."""

from typing import Any

from pydantic import BaseModel

from keras_deepseek.operator import api

_DROPPED = ("title", "additionalProperties", "default", "format")
"""JSON schema's words that a CustomResourceDefinition does without.

It prunes unknown fields by itself. A default would be written into each object, and would break
fields such as `replicas`, where unset means "keep what runs".
"""

_CONDITION = {
    "type": "object",
    "required": ["type", "status", "reason", "message", "lastTransitionTime"],
    "properties": {
        "type": {"type": "string", "maxLength": 316},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "observedGeneration": {"type": "integer", "minimum": 0},
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "reason": {"type": "string", "maxLength": 1024},
        "message": {"type": "string", "maxLength": 32768},
    },
}

_STATUS = {
    "type": "object",
    "properties": {
        "observedGeneration": {"type": "integer", "minimum": 0},
        "replicas": {"type": "integer", "minimum": 0},
        "readyReplicas": {"type": "integer", "minimum": 0},
        "selector": {"type": "string"},
        "region": {"type": "string"},
        "conditions": {
            "type": "array",
            "items": _CONDITION,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    },
}

_COLUMNS = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Replicas", "integer", ".status.replicas", 0),
    ("Available", "integer", ".status.readyReplicas", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Message", "string", '.status.conditions[?(@.type=="Ready")].message', 1),
)


def make_crd() -> dict[str, Any]:
    """Returns the CustomResourceDefinition as an object for YAML."""
    whole = _structural_schema(api.ModelDeployment)
    schema = {
        "type": "object",
        "description": "A model that is served by a number of pods, behind one Service.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": whole["properties"]["spec"],
            "status": _STATUS,
        },
        "x-kubernetes-validations": whole["x-kubernetes-validations"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{api.PLURAL}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": api.KIND,
                "listKind": f"{api.KIND}List",
                "plural": api.PLURAL,
                "singular": api.KIND.lower(),
                "shortNames": ["mdep"],
            },
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        # Helm leaves out a 0, and would then conflict with kubectl.
                        {"name": name, "type": kind, "jsonPath": path}
                        | ({"priority": priority} if priority else {})
                        for name, kind, path, priority in _COLUMNS
                    ],
                }
            ],
        },
    }


def _structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Returns a model's schema as Kubernetes takes it: with no `$ref` and no `null`."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})

    def structural(node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            definition = definitions[node["$ref"].rpartition("/")[2]]
            return structural({**definition, **{k: v for k, v in node.items() if k != "$ref"}})
        if "x-kubernetes-preserve-unknown-fields" in node:
            return _without_dropped(node)
        if "x-kubernetes-int-or-string" in node:
            return {**_without_dropped(node), "anyOf": [{"type": "integer"}, {"type": "string"}]}
        if "anyOf" in node:  # A field that may be unset: Kubernetes has no null for it.
            (only,) = (branch for branch in node["anyOf"] if branch != {"type": "null"})
            return structural({**only, **{k: v for k, v in node.items() if k != "anyOf"}})
        structure = _without_dropped(node)
        if "const" in node:
            structure["enum"] = [structure.pop("const")]
        if "properties" in node:
            fields = node["properties"].items()
            structure["properties"] = {name: structural(field) for name, field in fields}
        elif isinstance(node.get("additionalProperties"), dict):
            structure["additionalProperties"] = structural(node["additionalProperties"])
        if "items" in node:
            structure["items"] = structural(node["items"])
        return structure

    return structural(schema)


def _without_dropped(node: dict[str, Any]) -> dict[str, Any]:
    schema = {word: value for word, value in node.items() if word not in _DROPPED}
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    return schema

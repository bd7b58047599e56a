"""A stand-in for the Kubernetes API server, in memory: reads, lists, applies, deletes and status.

It knows one rule of server-side apply, that of a Deployment's replicas: an apply without them takes
them from a manager that had them, and a Deployment that nobody gave replicas has one. Everything
else that is applied is merged. Items of a list of built-in kinds have no kind, as those of a real
API server. The nightly tests use a real one.
"""

import copy
from typing import Any

from aiohttp import web

from keras_deepseek.operator.kinds import CHILDREN, DEPLOYMENT, MODEL_DEPLOYMENT, OPTIONAL, POD


class ApiServer:
    """The stand-in. `objects` are those that exist, by path; `writes` are the paths written.

    Writes to a path of `refusals` are refused, and all requests for a plural of `forbidden`, or
    without the `token`, if there is one. `events` are the bodies of applied Events.
    """

    def __init__(self, kinds=CHILDREN):
        self.kinds = (*kinds, MODEL_DEPLOYMENT, POD)
        self.objects: dict[str, dict[str, Any]] = {}
        self.writes: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.token: str | None = None
        self.reads = 0
        self.refusals: dict[str, tuple[int, str]] = {}
        self.forbidden: set[str] = set()
        self.fails_after: int | None = None
        self.application = web.Application()
        self.application.router.add_route("*", "/{path:.*}", self._answer)

    def add(self, kind, manifest, *, uid="uid"):
        """Adds an object as a user would."""
        metadata = {"namespace": "default", "uid": uid, "generation": 1, **manifest["metadata"]}
        whole = {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            **manifest,
            "metadata": metadata,
        }
        self.objects[kind.path(metadata["namespace"], metadata["name"])] = whole

    def get(self, kind, name, namespace="default"):
        """Returns an object, or `None`."""
        return self.objects.get(kind.path(namespace, name))

    async def _answer(self, request):
        path = request.path
        if error := self._refuse(request):
            return error
        if request.method == "GET":
            self.reads += 1
            return self._read(path, request.query)
        if "/events/" in path:
            self.events.append(await request.json())
            return web.json_response({})
        if self.fails_after is not None and len(self.writes) >= self.fails_after:
            return _error(503, "ServiceUnavailable", "killed")
        self.writes.append(path)
        if request.method == "DELETE":
            return web.json_response(self.objects.pop(path))
        return self._patch(path, await request.json(), request.query.get("fieldManager"))

    def _refuse(self, request):
        """Returns an error, or `None`."""
        path = request.path
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _error(401, "Unauthorized", "Unauthorized")
        for plural in self.forbidden & set(path.split("/")):
            return _error(403, "Forbidden", f'{plural} is forbidden: User "operator" cannot do so')
        if request.method != "GET" and path in self.refusals:
            status, message = self.refusals[path]
            return _error(status, "Refused", message)
        return None

    def _read(self, path, query):
        for kind in self.kinds:
            if path == kind.path().removesuffix(f"/{kind.plural}"):
                same = [other for other in self.kinds if other.api_version == kind.api_version]
                return web.json_response(
                    {"resources": [{"name": resource.plural} for resource in same]}
                )
            if path.endswith(f"/{kind.plural}"):
                return web.json_response({"items": self._list(kind, query.get("labelSelector"))})
        if path in self.objects:
            return web.json_response(self.objects[path])
        return _error(404, "NotFound", "not found")

    def _list(self, kind, selector):
        labels = dict(pair.split("=") for pair in selector.split(",")) if selector else {}
        objects = [
            manifest for path, manifest in self.objects.items() if f"/{kind.plural}/" in path
        ]
        objects = [
            manifest
            for manifest in objects
            if labels.items() <= manifest["metadata"].get("labels", {}).items()
        ]
        if kind in OPTIONAL or kind is MODEL_DEPLOYMENT:
            return objects
        dropped = ("apiVersion", "kind")
        return [
            {key: value for key, value in manifest.items() if key not in dropped}
            for manifest in objects
        ]

    def _patch(self, path, body, manager):
        if path.endswith("/status"):
            self.objects[path.removesuffix("/status")]["status"] = body["status"]
            return web.json_response({})
        new_metadata = {"generation": 0, "uid": f"uid of {path}"}
        old = self.objects.get(path, {"metadata": new_metadata})
        new = _merge(copy.deepcopy(old), body)
        if f"/{DEPLOYMENT.plural}/" in path:
            owners = self._owners(old)
            has = "replicas" in body["spec"]
            owners = owners | {manager} if has else owners - {manager}
            if not has and owners != self._owners(old) and not owners:
                new["spec"].pop("replicas")
            new["spec"].setdefault("replicas", 1)
            field = {"f:spec": {"f:replicas": {}}}
            new["metadata"]["managedFields"] = [
                {"manager": owner, "fieldsV1": field} for owner in sorted(owners)
            ]
        if new != old:
            new["metadata"]["generation"] += 1
        self.objects[path] = new
        return web.json_response(new)

    def _owners(self, manifest):
        return {entry["manager"] for entry in manifest["metadata"].get("managedFields", [])}


def _merge(old, new):
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return new


def _error(status, reason, message):
    return web.json_response({"reason": reason, "message": message}, status=status)

"""A stand-in for Kubernetes's authorizer: a proxy that knows one ClusterRole.

It notes each right that a request needs, and refuses a request beyond the role as an API server
does. The API server behind it allows everything.
"""

import json
from typing import NamedTuple

import aiohttp
import yaml
from aiohttp import web

from cluster_tests.cluster import ROOT
from cluster_tests.proxy import Proxy, error_status

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
DISCOVERY = ("/api", "/apis", "/version")
"""The paths that everybody may read, by the ClusterRole `system:discovery`."""


class Right(NamedTuple):
    """A right, as a ClusterRole grants it."""

    group: str
    resource: str
    verb: str


BLOCK_DELETION = Right("deepseek.io", "modeldeployments/finalizers", "update")


def shipped_rights():
    """Returns the rights of `kubernetes/base`."""
    objects = yaml.safe_load_all((ROOT / "kubernetes/base/rbac.yaml").read_text())
    (role,) = (manifest for manifest in objects if manifest["kind"] == "ClusterRole")
    return {
        Right(group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def needed_right(method, path, query):
    """Returns the right that a request needs and its namespace, or `None` for discovery."""
    root, *words = path.strip("/").split("/")
    group, words = ("", words[1:]) if root == "api" else (words and words[0], words[2:])
    if root not in ("api", "apis") or not words:
        return None
    namespace = None
    if words[0] == "namespaces" and len(words) > 2:
        namespace, words = words[1], words[2:]
    resource, name, below = (*words, None, None)[:3]
    if method == "GET":
        verb = "get" if name else "watch" if "watch" in query else "list"
    else:
        verb = VERBS[method]
    return Right(group, f"{resource}/{below}" if below else resource, verb), namespace


class RightsProxy(Proxy):
    """A proxy for a client with some rights."""

    def __init__(self, target, folder, rights):
        self.rights = rights
        self.used = {}
        """The namespaces in which each right was used; `None` is the whole cluster."""
        self.refused = set()
        super().__init__(target, folder)

    async def _answer(self, request):
        for right, namespace in await self._needed_rights(request):
            if right not in self.rights:
                self.refused.add(right)
                message = f"{right} in the namespace {namespace} is forbidden."
                return web.json_response(error_status(403, "Forbidden", message), status=403)
            self.used.setdefault(right, set()).add(namespace)
        return await super()._answer(request)

    async def _needed_rights(self, request):
        """Returns the rights that a request needs, with their namespaces."""
        requirement = needed_right(request.method, request.path, request.query)
        if requirement is None:
            is_discovery = request.method == "GET" and request.path.startswith(DISCOVERY)
            return [] if is_discovery else [(Right("", request.path, request.method), None)]
        right, namespace = requirement
        needed = [requirement]
        if "apply-patch" in request.content_type and not await self._exists(request.path):
            needed.append((right._replace(verb="create"), namespace))
            owners = json.loads(await request.read())["metadata"].get("ownerReferences", [])
            if any(owner["blockOwnerDeletion"] for owner in owners):
                # Clusters with OwnerReferencesPermissionEnforcement ask for this.
                needed.append((BLOCK_DELETION, namespace))
        return needed

    async def _exists(self, path):
        try:
            async with self._session.get(self.target + path) as answer:
                return answer.status != 404
        except aiohttp.ClientError:  # The API server was killed: the request itself will fail.
            return True

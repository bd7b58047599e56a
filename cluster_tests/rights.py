"""A stand-in for Kubernetes's authorizer: a proxy that knows one ClusterRole.

It notes each right that a request needs, and refuses a request beyond the role as an API server
does. The API server behind it allows everything.
"""

import asyncio
import json
import threading
from typing import NamedTuple

import aiohttp
import yaml
from aiohttp import web

from cluster_tests.cluster import CONFIG, ROOT

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
DISCOVERY = ("/api", "/apis", "/version")
"""The paths that everybody may read, by the ClusterRole `system:discovery`."""


class Right(NamedTuple):
    """A right, as a ClusterRole grants it."""

    group: str
    resource: str
    verb: str


def shipped_rights():
    """Returns the rights of `kubernetes/base`."""
    objects = yaml.safe_load_all((ROOT / "kubernetes/base/rbac.yaml").read_text())
    (role,) = (found for found in objects if found["kind"] == "ClusterRole")
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
    words = words[1:] if root == "api" else words[2:]  # Without group and version.
    if root not in ("api", "apis") or not words:
        return None
    namespace = None
    if words[0] == "namespaces" and len(words) > 2:
        namespace, words = words[1], words[2:]
    resource, name, *below = [*words, None][: max(2, len(words))]
    if method == "GET":
        verb = "get" if name else "watch" if query.get("watch") in ("true", "1") else "list"
    else:
        verb = VERBS[method]
    group = "" if root == "api" else path.strip("/").split("/")[1]
    return Right(group, "/".join([resource, *below]), verb), namespace


class RightsProxy:
    """The proxy, in a thread of its own.

    Args:
        server: The URL of the API server.
        rights: The rights of the client.
        config: The file to write, by which a client finds the proxy.
    """

    def __init__(self, server, rights, config):
        self.server = server
        self.rights = rights
        self.used = {}
        """The namespaces in which each right was used; `None` is the whole cluster."""
        self.refused = set()
        self.config = config
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._is_up.wait(30)

    def stop(self):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _run(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=None)
        server = web.Server(self._answer, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        self.config.write_text(CONFIG.format(url=f"http://127.0.0.1:{port}"))
        async with aiohttp.ClientSession(timeout=timeout) as self._session:
            self._is_up.set()
            await self._end.wait()
        await runner.cleanup()  # Watches have ended with the session.

    async def _answer(self, request):
        data = await request.read()
        needed = needed_right(request.method, request.path, request.query)
        if needed is None:
            allowed = request.method == "GET" and request.path.startswith(DISCOVERY)
            return await self._forward(request, data) if allowed else _forbidden(request.path)
        right, namespace = needed
        rights = [right]
        if "apply-patch" in request.content_type and not await self._exists(request.path):
            rights.append(right._replace(verb="create"))
            if any(owner["blockOwnerDeletion"] for owner in _owners(data)):
                # Clusters with OwnerReferencesPermissionEnforcement ask for this.
                rights.append(Right("deepseek.io", "modeldeployments/finalizers", "update"))
        for each in rights:
            if each not in self.rights:
                self.refused.add(each)
                return _forbidden(each, namespace)
            self.used.setdefault(each, set()).add(namespace)
        return await self._forward(request, data)

    async def _exists(self, path):
        async with self._session.get(self.server + path) as answer:
            return answer.status != 404

    async def _forward(self, request, data):
        headers = {key: value for key, value in request.headers.items() if key != "Host"}
        url = self.server + request.raw_path
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=data or None
            ) as answer:
                kept = {"Content-Type": answer.content_type}
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except aiohttp.ClientError:  # The client or the API server is gone: so is the other.
            if request.transport:
                request.transport.close()
            return web.Response(status=502)


def _owners(data):
    return json.loads(data).get("metadata", {}).get("ownerReferences", [])


def _forbidden(right, namespace=None):
    message = f"{right} in the namespace {namespace} is forbidden."
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden"}
    return web.json_response({**status, "code": 403, "message": message}, status=403)

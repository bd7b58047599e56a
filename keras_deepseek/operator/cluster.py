"""The API server: reads, server-side applies and deletes over one `aiohttp` session."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any

import aiohttp

from keras_deepseek.operator.kinds import CHILDREN, DEPLOYMENT, Kind, Object
from keras_deepseek.operator.plan import Apply, Delete

_APPLY = "application/apply-patch+yaml"  # JSON is YAML.
_VERSIONS = sorted({kind.api_version for kind in CHILDREN})
_TIMEOUT = aiohttp.ClientTimeout(total=30.0)
_WATCH_SECONDS = 300
"""The time after which the API server ends a watch. Another one goes on from there."""
_WATCH_TIMEOUT = aiohttp.ClientTimeout(sock_connect=10.0, sock_read=_WATCH_SECONDS + 30.0)
_SECONDS_BEFORE_WATCH = 1.0
_ADVICE = {
    "is forbidden: User": "Give the operator the rights of kubernetes/base/rbac.yaml.",
    "must specify a volume type": "Models at oci:// need Kubernetes 1.35, for image volumes.",
}
"""Advice for errors, by a part of the API server's message."""


class ClusterError(Exception):
    """The error for a request that the API server refused.

    Args:
        status: The HTTP status.
        reason: The API server's reason, as `Invalid`.
        message: The API server's message.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    @property
    def is_permanent(self) -> bool:
        """True if the same request will fail again until someone changes something."""
        return self.is_wrong_form or self.status in (400, 403, 404, 413, 415, 422)

    @property
    def is_wrong_form(self) -> bool:
        """True if an applied object has an unknown field, or one of a wrong type."""
        return "typed patch object" in str(self) or "strict decoding error" in str(self)


class Cluster:
    """The API server, as the operator uses it.

    Args:
        session: The session, with the credentials.
        server: The URL of the API server.
        read_headers: Returns the headers of the credentials, as they are now.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        server: str,
        read_headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.session = session
        self.server = server.rstrip("/")
        self._read_headers = read_headers

    async def close(self) -> None:
        """Closes the session."""
        await self.session.close()

    async def kinds(self) -> set[Kind]:
        """Returns the kinds of children that the API server has."""
        resources = {version: await self._resources(version) for version in _VERSIONS}
        return {kind for kind in CHILDREN if kind.plural in resources[kind.api_version]}

    async def has(self, kind: Kind) -> bool:
        """Returns True if the API server has a kind."""
        return kind.plural in await self._resources(kind.api_version)

    async def _resources(self, version: str) -> set[str]:
        root = "api" if "/" not in version else "apis"
        resource_list = await self._find(f"/{root}/{version}") or {}
        return {resource["name"] for resource in resource_list.get("resources", [])}

    async def read(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Returns an object, or `None` if there is none."""
        return await self._find(kind.path(namespace, name))

    async def items(self, kind: Kind, namespace: str | None = None, **params: str) -> list[Object]:
        """Returns all objects of a kind."""
        answer = await self._exchange("GET", kind.path(namespace), **params)
        # The API server gives items of built-in kinds neither.
        whole = {"apiVersion": kind.api_version, "kind": kind.name}
        return [{**whole, **item} for item in answer["items"]]

    async def watch(self, kind: Kind, **params: str) -> AsyncIterator[Object]:
        """Yields all objects of a kind, and then each that changes or is deleted, without end.

        If the connection breaks, a new one goes on after the last change.

        Raises:
            ClusterError: The API server refuses the watch, or no longer has the changes.
        """
        answer = await self._exchange("GET", kind.path(), **params)
        version = answer["metadata"]["resourceVersion"]
        for item in answer["items"]:
            yield item
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async for event in self._read_events(kind, resourceVersion=version, **params):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event["object"]
            await asyncio.sleep(_SECONDS_BEFORE_WATCH)

    async def _read_events(self, kind: Kind, **params: str) -> AsyncIterator[Object]:
        params |= {"watch": "true", "allowWatchBookmarks": "true"}
        params["timeoutSeconds"] = str(_WATCH_SECONDS)
        async with self.session.get(
            self.server + kind.path(), params=params, timeout=_WATCH_TIMEOUT
        ) as answer:
            if answer.status != HTTPStatus.OK:
                raise _error(answer.status, _parse(await answer.text()))
            line_begin = b""
            async for chunk in answer.content.iter_any():
                *lines, line_begin = (line_begin + chunk).split(b"\n")
                for event in map(json.loads, lines):
                    if event["type"] == "ERROR":
                        raise _error(event["object"].get("code", 500), event["object"])
                    yield event

    async def run(self, step: Apply | Delete, namespace: str) -> Object | None:
        """Runs a step of a plan. Returns the object after an apply."""
        path = step.kind.path(namespace, step.name)
        if isinstance(step, Apply):
            params = {"fieldManager": step.manager, "force": "true", "fieldValidation": "Strict"}
            return await self._exchange("PATCH", path, step.body, _APPLY, **params)
        # A Deployment stays until its pods have left, so that a plan can wait for them.
        policy = "Foreground" if step.kind is DEPLOYMENT else "Background"
        body = {"propagationPolicy": policy, "preconditions": {"uid": step.uid}}
        try:
            await self._exchange("DELETE", path, body)
        except ClusterError as error:
            if error.status != 404:  # noqa: PLR2004 - it is gone already.
                raise
        return None

    async def write_status(self, kind: Kind, namespace: str, name: str, status: Object) -> None:
        """Writes the status of an object."""
        body = {"status": status}
        path = f"{kind.path(namespace, name)}/status"
        await self._exchange("PATCH", path, body, "application/merge-patch+json")

    async def _find(self, path: str) -> Object | None:
        try:
            return await self._exchange("GET", path)
        except ClusterError as error:
            if error.status == 404:  # noqa: PLR2004
                return None
            raise

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Any = None,
        kind: str = "application/json",
        **params: str,
    ) -> Object:
        headers = {"Content-Type": kind, "Accept": "application/json"}
        data = None if body is None else json.dumps(body)
        sent = self.session.headers.get("Authorization")
        async with self.session.request(
            method, self.server + path, params=params, headers=headers, data=data, timeout=_TIMEOUT
        ) as answer:
            text = await answer.text()
            if answer.status == 401 and self._has_other_credentials(sent):  # noqa: PLR2004
                return await self._exchange(method, path, body, kind, **params)
            if answer.status >= 300:  # noqa: PLR2004
                raise _error(answer.status, _parse(text))
            return _parse(text)

    def _has_other_credentials(self, sent: str | None) -> bool:
        """Reads the credentials again. Returns True if they differ from those that were sent."""
        self.session.headers.update(self._read_headers())
        return self.session.headers.get("Authorization") != sent


def _parse(text: str) -> Object:
    try:
        content: Object = json.loads(text)
    except json.JSONDecodeError:
        content = {"message": text[:200]}
    return content


def _error(status: int, content: Object) -> ClusterError:
    message = content.get("message") or f"status {status}"
    advice = [advice for part, advice in _ADVICE.items() if part in message]
    return ClusterError(status, content.get("reason", "Unknown"), ". ".join([message, *advice]))

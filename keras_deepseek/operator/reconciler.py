"""The reconciler: brings the objects of the cluster to what each `ModelDeployment` asks for.

It is level-based: an event only says which object to look at. One queue holds names, each once.
"""

import asyncio
import json
import logging
from collections.abc import Collection

import aiohttp

from keras_deepseek.operator.cluster import Cluster, ClusterError
from keras_deepseek.operator.kinds import (
    AUTOSCALER,
    CHILDREN,
    MODEL_DEPLOYMENT,
    POD,
    SCALED_OBJECT,
    Kind,
    Object,
)
from keras_deepseek.operator.plan import (
    MANAGED,
    Apply,
    Delete,
    Live,
    Plan,
    Problem,
    Settings,
    child_names,
    make_plan,
)
from keras_deepseek.operator.scaling import keda_autoscaler_name
from keras_deepseek.operator.status import make_status

Key = tuple[str, str]
"""The namespace and the name of a `ModelDeployment`."""

_LOG = logging.getLogger(__name__)
_RESYNC_SECONDS = 60.0
_WORKERS = 4
_MOST_BACKOFF_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 10.0
"""The period in which the pods of an object that isn't ready are read: they are not watched."""


class Reconciler:
    """The work queue, and what each pass over an object does.

    Args:
        cluster: The API server.
        settings: The settings of the operator.
    """

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._applied: dict[tuple[Key, Kind, str, str], str] = {}
        self._kinds: Collection[Kind] = ()

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync_for_ever())
            for _ in range(_WORKERS):
                tasks.create_task(self._work())

    def ask(self, namespace: str, name: str) -> None:
        """Asks for a pass over an object, soon."""
        key = (namespace, name)
        if key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)

    async def reconcile(self, namespace: str, name: str) -> None:
        """Brings the children of one object to its plan, and writes its status."""
        deployment = await self._cluster.read(MODEL_DEPLOYMENT, namespace, name)
        if deployment is None or "deletionTimestamp" in deployment["metadata"]:
            self._forget((namespace, name))
            return
        live = await self._read_children(namespace, name)
        plan = make_plan(deployment, live, self._kinds, self._settings)
        failure = None
        try:
            for step in self._changes((namespace, name), plan, live):
                await self._run_step(step, (namespace, name), live)
        except ClusterError as error:
            if not error.is_permanent:
                raise
            failure = error.reason, f"{step.kind.name} {step.name!r}: {error}"
            _LOG.warning("%s/%s: %s", namespace, name, failure[1])
        await self._write_status(deployment, plan, live, failure)

    async def resync(self) -> None:
        """Asks for a pass over each object whose children differ from its plan.

        The number of requests does not grow with the number of objects.
        """
        self._kinds = await self._cluster.kinds()
        deployments = await self._cluster.items(MODEL_DEPLOYMENT)
        selector = ",".join(f"{key}={value}" for key, value in MANAGED.items())
        children: dict[Key, dict[tuple[Kind, str], Object]] = {}
        for kind in CHILDREN:
            if kind not in self._kinds:
                continue
            for child in await self._cluster.items(kind, labelSelector=selector):
                metadata = child["metadata"]
                for owner in metadata.get("ownerReferences", []):
                    key = (metadata["namespace"], owner["name"])
                    children.setdefault(key, {})[kind, metadata["name"]] = child
        for deployment in deployments:
            metadata = deployment["metadata"]
            key = (metadata["namespace"], metadata["name"])
            live = children.get(key, {})
            plan = make_plan(deployment, live, self._kinds, self._settings)
            seen = deployment.get("status", {}).get("observedGeneration")
            if seen != metadata.get("generation") or self._changes(key, plan, live):
                self.ask(*key)

    async def _resync_for_ever(self) -> None:
        while True:
            try:
                await self.resync()
            except (ClusterError, aiohttp.ClientError, TimeoutError) as error:
                _LOG.warning("Could not list the objects; again in a minute: %s", error)
            await asyncio.sleep(_RESYNC_SECONDS)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            if key in self._busy:  # Another worker has it, and has perhaps read too early.
                self._ask_later(key, 1.0)
                continue
            self._busy.add(key)
            try:
                await self.reconcile(*key)
                self._failures.pop(key, None)
            except Exception as error:  # noqa: BLE001 - the other objects go on.
                self._retry_later(key, error)
            finally:
                self._busy.discard(key)

    def _retry_later(self, key: Key, error: Exception) -> None:
        known = isinstance(error, ClusterError | aiohttp.ClientError | TimeoutError)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(2.0**failures, _MOST_BACKOFF_SECONDS)
        _LOG.warning(
            "%s/%s: again in %d s: %s", *key, seconds, error, exc_info=None if known else error
        )
        self._ask_later(key, seconds)

    def _ask_later(self, key: Key, seconds: float) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self.ask, *key)

    def _forget(self, key: Key) -> None:
        """Drops what is known of a deleted object. Kubernetes deletes its children."""
        self._failures.pop(key, None)
        self._timers.pop(key, None)
        self._applied = {place: text for place, text in self._applied.items() if place[0] != key}

    async def _read_children(self, namespace: str, name: str) -> dict[tuple[Kind, str], Object]:
        places = [(kind, child) for kind in self._kinds for child in child_names(name)]
        if SCALED_OBJECT in self._kinds:
            places.append((AUTOSCALER, keda_autoscaler_name(name)))
        found = await asyncio.gather(
            *(self._cluster.read(kind, namespace, child) for kind, child in places)
        )
        return {place: child for place, child in zip(places, found, strict=True) if child}

    def _changes(self, key: Key, plan: Plan, live: Live) -> list[Apply | Delete]:
        """Returns the steps that would change something."""
        return [
            step
            for step in plan.steps
            if isinstance(step, Delete)
            or self._applied.get(_place(key, step)) != _text(step)
            or not _covers(live.get((step.kind, step.name)), step.body)
        ]

    async def _run_step(
        self, step: Apply | Delete, key: Key, live: dict[tuple[Kind, str], Object]
    ) -> None:
        after = await self._cluster.run(step, key[0])
        if isinstance(step, Delete) or after is None:
            live.pop((step.kind, step.name), None)
            return
        live[step.kind, step.name] = after
        self._applied[_place(key, step)] = _text(step)

    async def _write_status(
        self, deployment: Object, plan: Plan, live: Live, failure: Problem | None
    ) -> None:
        namespace, name = (deployment["metadata"][field] for field in ("namespace", "name"))
        region = self._settings.region

        def status(pods: list[Object]) -> Object:
            return make_status(deployment, plan, live, pods, failure, region)

        wanted = status([])
        if wanted["conditions"][0]["status"] != "True":
            if not plan.problem and wanted["selector"]:
                selector = wanted["selector"]
                wanted = status(await self._cluster.items(POD, namespace, labelSelector=selector))
            self._ask_later((namespace, name), _LOOK_AGAIN_SECONDS)
        if wanted != deployment.get("status"):
            await self._cluster.write_status(MODEL_DEPLOYMENT, namespace, name, wanted)


def _place(key: Key, step: Apply) -> tuple[Key, Kind, str, str]:
    return key, step.kind, step.name, step.manager


def _text(step: Apply) -> str:
    return json.dumps(step.body, sort_keys=True)


def _covers(live: object, wanted: object) -> bool:
    """Returns True if all that is wanted stands in the live object already."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            _covers(live.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list) and len(live) == len(wanted) and all(map(_covers, live, wanted))
        )
    return live == wanted

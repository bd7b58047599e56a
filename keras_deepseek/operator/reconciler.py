"""The reconciler: brings the objects of the cluster to what each `ModelDeployment` asks for.

It is level-based: an event only says which object to look at. One queue holds names, each once.
"""

import asyncio
import json
import logging
import re
from collections.abc import Collection
from http import HTTPStatus

import aiohttp

from keras_deepseek.operator.cluster import Cluster, ClusterError
from keras_deepseek.operator.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    EVENT,
    MODEL_DEPLOYMENT,
    POD,
    SCALED_OBJECT,
    Kind,
    Object,
)
from keras_deepseek.operator.plan import (
    INSTANCE,
    MANAGED,
    Apply,
    Delete,
    Live,
    Plan,
    Settings,
    child_names,
    make_plan,
)
from keras_deepseek.operator.problems import Problem
from keras_deepseek.operator.scaling import keda_autoscaler_name
from keras_deepseek.operator.status import find_condition, make_event, make_status

Key = tuple[str, str]
"""The namespace and the name of a `ModelDeployment`."""

_LOG = logging.getLogger(__name__)
_RESYNC_SECONDS = 60.0
_RETRY_SECONDS = 10.0
_WORKERS = 4
_BACKOFF_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)


class Reconciler:
    """Passes over the objects of a queue, and brings their children to what each asks for.

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
        self._attempts: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._applied: dict[tuple[Key, Kind, str, str], str] = {}
        """The fingerprint of the last apply of each child."""
        self._kinds: Collection[Kind] = ()
        self._refused: dict[Kind, ClusterError] = {}
        self._knows_kinds = asyncio.Event()

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

    async def reconcile(self, namespace: str, name: str) -> bool:
        """Brings the children of one object to its plan, and writes its status.

        Returns True if the object needs no further pass before something changes.
        """
        key = (namespace, name)
        model_deployment = await self._cluster.read(MODEL_DEPLOYMENT, namespace, name)
        if model_deployment is None or "deletionTimestamp" in model_deployment["metadata"]:
            self._forget(key)
            return True
        live: dict[tuple[Kind, str], Object] = {}
        plan, failure, step = Plan(), None, None
        done: dict[str, str] = {}
        try:
            await self._read_children(namespace, name, live)
            plan = make_plan(model_deployment, live, self._kinds, self._settings)
            for step in self._changes(key, plan, live):
                if verb := await self._run_step(step, key, live):
                    done.setdefault(f"{step.kind.name} {step.name!r}", verb)
        except ClusterError as error:
            if not error.is_permanent:
                raise
            failure = _describe(error, step)
        changes = ", ".join(f"{verb} {child}" for child, verb in done.items())
        events = [("Normal", "Applied", changes)] if changes else []
        is_settled = await self._update_status(model_deployment, plan, live, failure, events)
        for event in events:
            await self._post_event(make_event(model_deployment, *event))
        return is_settled

    async def resync(self) -> None:
        """Asks for a pass over each object whose children or status differ from its plan.

        The number of requests does not grow with the number of objects.
        """
        self._kinds = await self._cluster.kinds()
        model_deployments = await self._cluster.items(MODEL_DEPLOYMENT)
        children = await self._list_children()
        self._knows_kinds.set()
        for model_deployment in model_deployments:
            key = (model_deployment["metadata"]["namespace"], model_deployment["metadata"]["name"])
            live = children.get(key, {})
            plan = make_plan(model_deployment, live, self._kinds, self._settings)
            status = make_status(model_deployment, plan, live, region=self._settings.region)
            if status != model_deployment.get("status") or self._changes(key, plan, live):
                self.ask(*key)

    async def _list_children(self) -> dict[Key, dict[tuple[Kind, str], Object]]:
        """Returns the children of all objects. Stores the kinds that may not be listed."""
        selector = ",".join(f"{key}={value}" for key, value in MANAGED.items())
        children: dict[Key, dict[tuple[Kind, str], Object]] = {}
        refused: dict[Kind, ClusterError] = {}
        for kind in self._kinds:
            try:
                objects = await self._cluster.items(kind, labelSelector=selector)
            except ClusterError as error:
                if error.status != HTTPStatus.FORBIDDEN:
                    raise
                refused[kind] = error
                continue
            for child in objects:
                metadata = child["metadata"]
                for owner in metadata.get("ownerReferences", []):
                    key = (metadata["namespace"], owner["name"])
                    children.setdefault(key, {})[kind, metadata["name"]] = child
        self._refused = refused
        return children

    async def _resync_for_ever(self) -> None:
        while True:
            seconds = _RESYNC_SECONDS
            try:
                await self.resync()
            except Exception as error:  # noqa: BLE001 - the next one may succeed.
                seconds = _RETRY_SECONDS
                _LOG.warning("Could not list the objects; again in %d s: %s", seconds, error)
            await asyncio.sleep(seconds)

    async def _work(self) -> None:
        # Without the kinds nothing would be found, and replicas that run would be set anew.
        await self._knows_kinds.wait()
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            if key in self._busy:  # Another worker has it, and has perhaps read too early.
                asyncio.get_running_loop().call_later(1.0, self.ask, *key)
                continue
            self._busy.add(key)
            try:
                if await self.reconcile(*key):
                    self._settle(key)
                else:
                    self._ask_again(key)
            except Exception as error:  # noqa: BLE001 - the other objects go on.
                is_expected = isinstance(error, ClusterError | aiohttp.ClientError | TimeoutError)
                trace = None if is_expected else error
                _LOG.warning("%s/%s: again in a moment: %s", *key, error, exc_info=trace)
                self._ask_again(key)
            finally:
                self._busy.discard(key)

    def _ask_again(self, key: Key) -> None:
        """Asks for another pass after a growing wait, which other passes don't shorten."""
        if key not in self._timers:
            attempt = self._attempts.get(key, 0)
            self._attempts[key] = attempt + 1
            seconds = _BACKOFF_SECONDS[min(attempt, len(_BACKOFF_SECONDS) - 1)]
            loop = asyncio.get_running_loop()
            self._timers[key] = loop.call_later(seconds, self._end_wait, key)

    def _end_wait(self, key: Key) -> None:
        del self._timers[key]
        self.ask(*key)

    def _settle(self, key: Key) -> None:
        self._attempts.pop(key, None)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def _forget(self, key: Key) -> None:
        """Forgets the applied children of a deleted object. Kubernetes deletes them."""
        self._applied = {owned: text for owned, text in self._applied.items() if owned[0] != key}

    async def _read_children(
        self, namespace: str, name: str, live: dict[tuple[Kind, str], Object]
    ) -> None:
        """Reads an object's children into `live`, then raises the first error of a read."""
        kinds = set(self._kinds) - set(self._refused)
        child_keys = [(kind, child) for kind in kinds for child in child_names(name)]
        if {SCALED_OBJECT, AUTOSCALER} <= kinds:
            child_keys.append((AUTOSCALER, keda_autoscaler_name(name)))
        reads = (self._cluster.read(kind, namespace, child) for kind, child in child_keys)
        answers = await asyncio.gather(*reads, return_exceptions=True)
        pairs = zip(child_keys, answers, strict=True)
        live.update({child_key: child for child_key, child in pairs if isinstance(child, dict)})
        if errors := [child for child in answers if isinstance(child, BaseException)]:
            raise errors[0]

    def _changes(self, key: Key, plan: Plan, live: Live) -> list[Apply | Delete]:
        """Returns the deletes, and the applies that are new or whose fields are not all live."""
        return [
            step
            for step in plan.steps
            if isinstance(step, Delete)
            or self._applied.get(_owned_by(key, step)) != _fingerprint(step)
            or not _covers(live.get((step.kind, step.name)), step.body)
        ]

    async def _run_step(
        self, step: Apply | Delete, key: Key, live: dict[tuple[Kind, str], Object]
    ) -> str | None:
        """Runs a step. Returns a verb for its change, or `None` if it changed nothing."""
        if step.kind in self._refused:
            raise self._refused[step.kind]
        previous = live.get((step.kind, step.name))
        current = await self._cluster.run(step, key[0])
        if isinstance(step, Delete) or current is None:
            live.pop((step.kind, step.name), None)
        else:
            live[step.kind, step.name] = current
            self._applied[_owned_by(key, step)] = _fingerprint(step)
        if current == previous:
            return None
        verb = "deleted" if current is None else "changed" if previous else "created"
        _LOG.info("%s/%s: %s %s %r", *key, verb, step.kind.name, step.name)
        return verb

    async def _update_status(
        self,
        model_deployment: Object,
        plan: Plan,
        live: Live,
        failure: Problem | None,
        events: list[tuple[str, str, str]],
    ) -> bool:
        """Writes the status of an object if it has changed.

        A change of the condition `Ready` is logged, and added to `events` if the reason is new.

        Returns False if the object waits for pods: they are not watched, so it needs another pass.
        """
        namespace, name = (model_deployment["metadata"][field] for field in ("namespace", "name"))
        region = self._settings.region
        status = make_status(model_deployment, plan, live, (), failure, region)
        is_ready = find_condition(status, "Ready")["status"] == "True"
        is_settled = bool(plan.problem or failure) or is_ready
        if not is_settled:
            pods = await self._read_pods(namespace, name)
            status = make_status(model_deployment, plan, live, pods, failure, region)
        old_status = model_deployment.get("status", {})
        if status != old_status:
            old, new = (find_condition(state, "Ready") for state in (old_status, status))
            if [old.get("reason"), old.get("message")] != [new["reason"], new["message"]]:
                is_stalled = find_condition(status, "Stalled")["status"] == "True"
                level = logging.WARNING if is_stalled else logging.INFO
                _LOG.log(level, "%s/%s: %s: %s", namespace, name, new["reason"], new["message"])
                if is_stalled or old.get("reason") != new["reason"]:
                    kind = "Warning" if is_stalled else "Normal"
                    events.append((kind, new["reason"], new["message"]))
            await self._cluster.write_status(MODEL_DEPLOYMENT, namespace, name, status)
        return is_settled

    async def _post_event(self, event: Object) -> None:
        """Writes an Event. A refused one is only logged."""
        metadata = event["metadata"]
        try:
            await self._cluster.run(Apply(EVENT, metadata["name"], event), metadata["namespace"])
        except ClusterError as error:
            _LOG.warning("An Event could not be written: %s", error)

    async def _read_pods(self, namespace: str, name: str) -> list[Object]:
        """Returns pods, or none if they may not be read: the status can do without them."""
        try:
            selector = f"{INSTANCE}={name}"
            return await self._cluster.items(POD, namespace, labelSelector=selector)
        except ClusterError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            _LOG.warning("%s", error)
            return []


def _describe(error: ClusterError, step: Apply | Delete | None) -> Problem:
    """Returns the problem of a refused step, or of a refused read if `step` is `None`."""
    if step is None:
        return Problem(error.reason, str(error))
    if step.kind is DEPLOYMENT and error.is_wrong_form:
        # All of a Deployment but its template is the operator's own.
        detail = re.split(r"Kind=\w+\): |strict decoding error: ", str(error))[-1]
        return Problem("TemplateBroken", f"spec.template does not fit, correct it: {detail}")
    reason = "InvalidObject" if error.reason == "Invalid" else error.reason
    return Problem(reason, f"{step.kind.name} {step.name!r}: {error}")


def _owned_by(key: Key, step: Apply) -> tuple[Key, Kind, str, str]:
    return key, step.kind, step.name, step.manager


def _fingerprint(step: Apply) -> str:
    return json.dumps(step.body, sort_keys=True)


def _covers(live: object, desired: object) -> bool:
    """Returns True if the live object has every desired field and value."""
    if isinstance(desired, dict):
        return isinstance(live, dict) and all(
            _covers(live.get(key), value) for key, value in desired.items()
        )
    if isinstance(desired, list):
        return (
            isinstance(live, list)
            and len(live) == len(desired)
            and all(map(_covers, live, desired))
        )
    return live == desired

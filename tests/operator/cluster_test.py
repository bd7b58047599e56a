"""Requests to the stand-in for the API server."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from keras_deepseek.operator import cluster as cluster_module
from keras_deepseek.operator.cluster import Cluster, ClusterError
from keras_deepseek.operator.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, SCALED_OBJECT, SERVICE
from keras_deepseek.operator.plan import Apply, Delete
from tests.oracles.api_server import ApiServer

BODY = {"metadata": {"name": "digits"}, "spec": {"a": 1}}


@pytest.fixture
def call(run_async):
    """Returns a function that calls a function of a `Cluster` and a new stand-in."""

    def call(function, read_headers=dict, **arguments):
        async def run():
            server = ApiServer(**arguments)
            async with TestServer(server.application) as host, aiohttp.ClientSession() as session:
                cluster = Cluster(session, str(host.make_url("/")), read_headers)
                return await function(cluster, server)

        return run_async(run())

    return call


def test_finds_kinds(call):
    async def kinds(cluster, _):
        return await cluster.kinds(), await cluster.has(MODEL_DEPLOYMENT)

    present, has = call(kinds, kinds=(DEPLOYMENT, SERVICE))
    assert present == {DEPLOYMENT, SERVICE}
    assert has
    assert SCALED_OBJECT not in present


def test_reads_applies_and_deletes(call):
    async def steps(cluster, server):
        assert await cluster.read(SERVICE, "default", "digits") is None
        after = await cluster.run(Apply(SERVICE, "digits", BODY), "default")
        assert after["spec"] == {"a": 1}
        assert await cluster.read(SERVICE, "default", "digits") == after
        assert await cluster.items(SERVICE, labelSelector="a=b") == []
        assert await cluster.items(SERVICE) == [{"apiVersion": "v1", "kind": "Service", **after}]
        await cluster.run(Delete(SERVICE, "digits", "uid"), "default")
        assert server.objects == {}

    call(steps)


@pytest.mark.parametrize(
    ("status", "permanent"), [(422, True), (403, True), (409, False), (503, False)]
)
def test_refusal_says_if_it_is_permanent(call, status, permanent):
    async def refused(cluster, server):
        server.refusals[SERVICE.path("default", "digits")] = (status, "Reason")
        with pytest.raises(ClusterError, match="Reason") as caught:
            await cluster.run(Apply(SERVICE, "digits", BODY), "default")
        assert caught.value.is_permanent == permanent
        assert caught.value.reason == "Refused"

    call(refused)


def test_new_token_is_used_at_once(call):
    async def renew(cluster, server):
        server.token = tokens[0] = "new"
        await asyncio.gather(*(cluster.items(SERVICE) for _ in range(4)))
        server.token = "newer"
        with pytest.raises(ClusterError, match="Unauthorized"):
            await cluster.items(SERVICE)

    tokens = ["old"]
    call(renew, read_headers=lambda: {"Authorization": f"Bearer {tokens[0]}"})


def test_object_that_is_gone_counts_as_deleted(call):
    async def delete(cluster, server):
        server.refusals[SERVICE.path("default", "digits")] = (404, "not found")
        assert await cluster.run(Delete(SERVICE, "digits", "uid"), "default") is None

    call(delete)


@pytest.mark.parametrize(
    ("status", "message", "advice"),
    [
        (403, 'services is forbidden: User "a" cannot get', "kubernetes/base/rbac.yaml"),
        (422, "spec.volumes[0]: Required value: must specify a volume type", "Kubernetes 1.35"),
    ],
)
def test_refusal_says_what_to_do(call, status, message, advice):
    async def refused(cluster, server):
        server.refusals[SERVICE.path("default", "digits")] = (status, message)
        with pytest.raises(ClusterError, match=advice):
            await cluster.run(Apply(SERVICE, "digits", BODY), "default")

    call(refused)


class WatchedServer:
    """A list and watches of Services, each of which answers with the next script."""

    def __init__(self, *scripts):
        self.scripts = iter(scripts)
        self.versions = []
        self.application = web.Application()
        self.application.router.add_get(SERVICE.path(), self._answer)

    async def _answer(self, request):
        if "watch" not in request.query:
            items = [{"metadata": {"name": "listed", "resourceVersion": "3"}}]
            return web.json_response({"metadata": {"resourceVersion": "7"}, "items": items})
        self.versions.append(request.query["resourceVersion"])
        script = next(self.scripts)
        if isinstance(script, int):
            return web.json_response({"message": "no", "reason": "Expired"}, status=script)
        response = web.StreamResponse()
        await response.prepare(request)
        for part in script:
            await response.write(part.encode())
            await asyncio.sleep(0.01)  # They are read one by one.
        return response


def event(kind, name, version):
    metadata = {"name": name, "resourceVersion": version}
    return json.dumps({"type": kind, "object": {"metadata": metadata}}) + "\n"


def watch_names(run_async, monkeypatch, *scripts):
    """Returns the names that a watch yields, its error, and the versions that it asked for."""
    monkeypatch.setattr(cluster_module, "_SECONDS_BEFORE_WATCH", 0.0)

    async def run():
        server, names = WatchedServer(*scripts), []
        async with TestServer(server.application) as host, aiohttp.ClientSession() as session:
            items = Cluster(session, str(host.make_url("/"))).watch(SERVICE)
            try:
                while True:
                    names.append((await anext(items))["metadata"]["name"])
            except ClusterError as error:
                return names, error, server.versions

    return run_async(run())


def test_a_watch_goes_on_after_the_last_change(run_async, monkeypatch):
    long_line = event("MODIFIED", "b" * 200_000, "9")
    scripts = (
        [event("ADDED", "a", "8") + long_line[:100], long_line[100:]],
        [event("BOOKMARK", "", "12"), event("DELETED", "c", "13")[:20]],  # Cut within a line.
        [event("DELETED", "c", "13")],
        410,
    )
    names, error, versions = watch_names(run_async, monkeypatch, *scripts)
    assert names == ["listed", "a", "b" * 200_000, "c"]
    assert versions == ["7", "9", "12", "13"]
    assert (error.status, error.reason) == (410, "Expired")


def test_a_watch_whose_version_is_forgotten_ends(run_async, monkeypatch):
    status = {"code": 410, "reason": "Expired", "message": "too old resource version"}
    script = [json.dumps({"type": "ERROR", "object": status}) + "\n"]
    names, error, _ = watch_names(run_async, monkeypatch, script)
    assert (names, error.status, str(error)) == (["listed"], 410, "too old resource version")


def test_request_without_an_answer_ends(run_async, monkeypatch):
    monkeypatch.setattr(cluster_module, "_TIMEOUT", aiohttp.ClientTimeout(total=0.05))

    async def run():
        end = asyncio.Event()

        async def hang(_):
            await end.wait()
            return web.Response()

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", hang)
        async with TestServer(application) as host, aiohttp.ClientSession() as session:
            with pytest.raises(TimeoutError):
                await Cluster(session, str(host.make_url("/"))).kinds()
            end.set()

    run_async(run())

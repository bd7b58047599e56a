"""The reconciler on the stand-in for the API server. The nightly tests use a real one."""

import asyncio

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from keras_deepseek.operator.cluster import Cluster, ClusterError
from keras_deepseek.operator.kinds import (
    AUTOSCALER,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    HTTP_ROUTE,
    MODEL_DEPLOYMENT,
    POD,
    SCALED_OBJECT,
    SERVICE,
)
from keras_deepseek.operator.plan import Settings
from keras_deepseek.operator.reconciler import Reconciler
from tests.oracles.api_server import ApiServer

SETTINGS = Settings("serving:1", model_store="s3://models")
SCALING = {"minReplicas": 2, "maxReplicas": 9, "metrics": [{"type": "CPU", "target": 50}]}


@pytest.fixture
def call(run_async):
    """Returns a function that calls a function of an `ApiServer` and a maker of reconcilers."""

    def call(function):
        async def run():
            server = ApiServer()
            async with TestServer(server.application) as host, aiohttp.ClientSession() as session:
                cluster = Cluster(session, str(host.make_url("/")))

                async def start(*, resync=True):
                    reconciler = Reconciler(cluster, SETTINGS)
                    if resync:
                        await reconciler.resync()
                    return reconciler

                return await function(server, start)

        return run_async(run())

    return call


def children(server):
    """Returns what a user sees of the children."""
    return {
        path: (child["spec"], child["metadata"].get("labels"))
        for path, child in server.objects.items()
        if MODEL_DEPLOYMENT.plural not in path
    }


def condition(server, kind, name="digits"):
    status = server.get(MODEL_DEPLOYMENT, name)["status"]
    return next(entry for entry in status["conditions"] if entry["type"] == kind)


def test_makes_the_objects_and_a_status(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=3, autoscaling=SCALING))
        reconciler = await start()
        await reconciler.reconcile("default", "digits")
        for kind in (SERVICE, DEPLOYMENT, AUTOSCALER, DISRUPTION_BUDGET):
            assert server.get(kind, "digits"), kind
        assert server.get(DEPLOYMENT, "digits")["spec"]["replicas"] == 3
        assert condition(server, "Reconciling")["status"] == "True"

    call(check)


def test_second_pass_and_resync_write_nothing(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=3, autoscaling=SCALING))
        reconciler = await start()
        await reconciler.reconcile("default", "digits")
        server.writes.clear()
        await reconciler.reconcile("default", "digits")
        passes = []
        reconciler.ask = lambda *key: passes.append(key)
        await reconciler.resync()
        assert (server.writes, passes) == ([], [])

    call(check)


def test_idle_reads_do_not_grow_with_the_objects(call, deployment):
    async def check(server, start):
        counts = []
        for names in (range(1), range(20)):
            for number in names:
                server.add(MODEL_DEPLOYMENT, deployment(f"model-{number}"), uid=f"uid-{number}")
            reconciler = await start()
            for number in names:
                await reconciler.reconcile("default", f"model-{number}")
            server.reads = 0
            await reconciler.resync()
            counts.append(server.reads)
        assert counts[0] == counts[1]

    call(check)


@pytest.mark.parametrize(
    "spec",
    [
        {"autoscaling": SCALING},
        {"autoscaling": {**SCALING, "enabled": False}},
        {"autoscaling": {**SCALING, "engine": "KEDA"}},
        {"route": {"gateway": {"name": "public"}}, "canary": {"weight": 20, "replicas": 2}},
    ],
)
def test_killed_after_any_write_it_reaches_the_same_objects(call, deployment, spec):
    spec = {"replicas": 4, **spec}

    async def whole(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(**spec))
        await (await start()).reconcile("default", "digits")
        return children(server), len(server.writes)

    expected, count = call(whole)

    def killed_once(after):
        async def run(server, start):
            server.add(MODEL_DEPLOYMENT, deployment(**spec))
            server.fails_after = after
            with pytest.raises(ClusterError, match="killed"):
                await (await start()).reconcile("default", "digits")
            server.fails_after = None
            await (await start()).reconcile("default", "digits")
            return children(server)

        return run

    assert count > 4
    for after in range(count):
        assert call(killed_once(after)) == expected


def test_hand_over_keeps_replicas(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=5))
        reconciler = await start()
        await reconciler.reconcile("default", "digits")
        counts = []
        for spec in (
            {"replicas": 5, "autoscaling": SCALING},
            {"autoscaling": SCALING},
            {"autoscaling": {**SCALING, "enabled": False}},
            {"model": {"uri": "s3://models/digits"}},
        ):
            server.add(MODEL_DEPLOYMENT, deployment(**spec))
            await reconciler.reconcile("default", "digits")
            counts.append(server.get(DEPLOYMENT, "digits")["spec"]["replicas"])
        assert counts == [5, 5, 5, 5]
        assert server.get(AUTOSCALER, "digits") is None

    call(check)


def test_drift_is_mended(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=1))
        reconciler = await start()
        await reconciler.reconcile("default", "digits")
        del server.objects[SERVICE.path("default", "digits")]
        await reconciler.reconcile("default", "digits")
        assert server.get(SERVICE, "digits")

    call(check)


def test_refused_apply_is_one_condition(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=1))
        server.refusals[DEPLOYMENT.path("default", "digits")] = (422, "bad field x")
        reconciler = await start()
        needs_no_other_pass = await reconciler.reconcile("default", "digits")
        assert needs_no_other_pass
        assert condition(server, "Stalled")["message"] == "Deployment 'digits': bad field x"
        assert condition(server, "Stalled")["status"] == "True"

    call(check)


def test_unknown_field_is_a_broken_template(call, deployment):
    message = (
        "failed to create typed patch object (default/digits; apps/v1, Kind=Deployment): "
        '.spec.template.spec.containers[name="server"].foo: field not declared in schema'
    )

    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=1))
        server.refusals[DEPLOYMENT.path("default", "digits")] = (500, message)
        await (await start()).reconcile("default", "digits")
        stalled = condition(server, "Stalled")
        assert stalled["reason"] == "TemplateBroken"
        assert stalled["message"] == (
            "spec.template does not fit, correct it: "
            '.spec.template.spec.containers[name="server"].foo: field not declared in schema'
        )

    call(check)


def test_changes_and_problems_are_logged_once(call, deployment, caplog):
    caplog.set_level("INFO")

    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=2))
        reconciler = await start()
        await reconciler.reconcile("default", "digits")
        assert "default/digits: created Deployment 'digits'" in caplog.text
        server.add(MODEL_DEPLOYMENT, deployment(replicas=1))
        await reconciler.reconcile("default", "digits")
        assert "default/digits: changed Deployment 'digits'" in caplog.text
        assert "default/digits: deleted PodDisruptionBudget 'digits'" in caplog.text
        server.refusals[DEPLOYMENT.path("default", "digits")] = (422, "bad field x")
        server.add(MODEL_DEPLOYMENT, deployment(replicas=5))
        for restarted in (reconciler, await start()):
            await restarted.reconcile("default", "digits")
        assert caplog.text.count("bad field x") == 1
        assert caplog.text.count("created") == 3

    call(check)


def test_changes_of_state_are_events(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=1))
        server.refusals[DEPLOYMENT.path("default", "digits")] = (422, "bad field x")
        reconciler = await start()
        for _ in range(2):
            await reconciler.reconcile("default", "digits")
        server.refusals.clear()
        await reconciler.reconcile("default", "digits")
        events = [(event["type"], event["reason"], event["message"]) for event in server.events]
        assert events == [
            ("Normal", "Applied", "created Service 'digits'"),
            ("Warning", "Refused", "Deployment 'digits': bad field x"),
            ("Normal", "Applied", "created Deployment 'digits'"),
            ("Normal", "Progressing", "Kubernetes has not started the rollout"),
        ]
        owner = server.events[0]["involvedObject"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("ModelDeployment", "digits", "uid")
        server.forbidden = {"events"}
        server.add(MODEL_DEPLOYMENT, deployment(replicas=2))
        await reconciler.reconcile("default", "digits")
        assert server.get(DISRUPTION_BUDGET, "digits")

    call(check)


def test_resync_finds_a_changed_status_of_a_child(call, deployment):
    """No one watches routes and ScaledObjects."""
    route = {"gateway": {"name": "public"}}

    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=0, route=route))
        reconciler = await start()
        await reconciler.reconcile("default", "digits")
        refused = {"type": "Accepted", "status": "False", "reason": "No", "message": "no"}
        parents = [{"conditions": [refused]}]
        server.get(HTTP_ROUTE, "digits")["status"] = {"parents": parents}
        await reconciler.resync()
        running = asyncio.create_task(reconciler.run())
        while condition(server, "Ready")["reason"] != "RouteNotAccepted":
            await asyncio.sleep(0)
        running.cancel()

    call(check)


def test_taken_name_is_not_touched(call, deployment):
    async def check(server, start):
        server.add(SERVICE, {"metadata": {"name": "digits"}, "spec": {"mine": 1}}, uid="other")
        server.add(MODEL_DEPLOYMENT, deployment(replicas=1))
        reconciler = await start()
        await reconciler.reconcile("default", "digits")
        assert server.get(SERVICE, "digits")["spec"] == {"mine": 1}
        assert server.get(DEPLOYMENT, "digits") is None
        assert condition(server, "Stalled")["reason"] == "NameTaken"

    call(check)


def test_deleted_object_is_left_alone(call, deployment):
    async def check(server, start):
        await (await start()).reconcile("default", "digits")
        assert server.writes == []

    call(check)


def test_kind_that_may_not_be_listed_stops_only_the_objects_that_need_it(call, deployment):
    async def check(server, start):
        server.add(
            MODEL_DEPLOYMENT, deployment("scaled", autoscaling={**SCALING, "engine": "KEDA"})
        )
        server.add(MODEL_DEPLOYMENT, deployment("digits", replicas=2))
        server.forbidden = {SCALED_OBJECT.plural}
        reconciler = await start()
        for name in ("scaled", "digits"):
            await reconciler.reconcile("default", name)
        assert condition(server, "Stalled")["status"] == "False"
        assert server.get(DISRUPTION_BUDGET, "digits")
        stalled = condition(server, "Stalled", "scaled")
        assert (stalled["status"], stalled["reason"]) == ("True", "Forbidden")
        assert stalled["message"].endswith("the rights of kubernetes/base/rbac.yaml.")
        server.forbidden = set()
        await reconciler.resync()
        await reconciler.reconcile("default", "scaled")
        assert condition(server, "Stalled", "scaled")["status"] == "False"
        assert server.get(SCALED_OBJECT, "scaled")

    call(check)


def test_children_that_may_not_be_read_are_one_condition(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=2))
        reconciler = await start()
        server.forbidden = {SERVICE.plural}
        await reconciler.reconcile("default", "digits")
        assert condition(server, "Stalled")["reason"] == "Forbidden"
        assert server.get(DEPLOYMENT, "digits") is None

    call(check)


def test_pods_that_may_not_be_read_are_left_out(call, deployment):
    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(replicas=2))
        server.forbidden = {POD.plural}
        await (await start()).reconcile("default", "digits")
        assert condition(server, "Reconciling")["status"] == "True"

    call(check)


def test_event_before_the_first_list_waits_for_the_kinds(call, deployment):
    """Without them no child would be found, and the autoscaler's replicas would be set anew."""

    async def check(server, start):
        server.add(MODEL_DEPLOYMENT, deployment(autoscaling=SCALING))
        await (await start()).reconcile("default", "digits")
        live = server.get(DEPLOYMENT, "digits")
        live["spec"]["replicas"] = 7
        live["metadata"]["managedFields"][0]["manager"] = "kube-controller-manager"
        del server.get(MODEL_DEPLOYMENT, "digits")["status"]
        restarted = await start(resync=False)
        restarted.ask("default", "digits")
        running = asyncio.create_task(restarted.run())
        while "status" not in server.get(MODEL_DEPLOYMENT, "digits"):
            await asyncio.sleep(0)
        running.cancel()
        assert server.get(DEPLOYMENT, "digits")["spec"]["replicas"] == 7

    call(check)

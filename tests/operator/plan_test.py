"""The plan of an object. Hand-overs of replicas are also tested on a real API server, nightly."""

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator import plan as plan_module
from keras_deepseek.operator.kinds import (
    AUTOSCALER,
    CHILDREN,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    HTTP_ROUTE,
    SCALED_OBJECT,
    SERVICE,
)
from keras_deepseek.operator.plan import (
    SCALE_MANAGER,
    Apply,
    Delete,
    Settings,
    make_plan,
    owners_of_replicas,
)

SETTINGS = Settings("serving:1", model_store="s3://models")
SCALING = {
    "minReplicas": 2,
    "maxReplicas": 10,
    "metrics": [{"type": "RequestsPerSecond", "target": 1000}],
}
KEDA = {**SCALING, "engine": "KEDA"}
ROUTE = {"gateway": {"name": "public"}, "hostnames": ["models.example.com"]}


def plan(deployment, live=(), kinds=CHILDREN, settings=SETTINGS):
    return make_plan(deployment, dict(live), kinds, settings)


def child(kind, name="digits", *, uid="uid", **fields):
    metadata = {"name": name, "uid": f"{kind.name} {name}", "ownerReferences": [{"uid": uid}]}
    return (kind, name), {"metadata": metadata, **fields}


def running(replicas, manager, name="digits", ready=None):
    owner = {"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    key, deployment = child(DEPLOYMENT, name, spec={"replicas": replicas})
    deployment["metadata"]["managedFields"] = [owner]
    deployment["metadata"]["generation"] = 1
    ready = replicas if ready is None else ready
    deployment["status"] = {
        "observedGeneration": 1,
        "replicas": replicas,
        "updatedReplicas": replicas,
    }
    deployment["status"] |= {"readyReplicas": ready, "availableReplicas": ready}
    return key, deployment


def scales(planned):
    """Returns the replicas that the second field manager applies, by Deployment."""
    return {
        step.name: step.body["spec"]["replicas"]
        for step in planned.steps
        if isinstance(step, Apply) and step.manager == SCALE_MANAGER
    }


def child_keys(planned, kind_of_step):
    return [(step.kind, step.name) for step in planned.steps if isinstance(step, kind_of_step)]


def body(planned, kind, name="digits"):
    """Returns the first body that is applied to an object."""
    return next(
        s.body for s in planned.steps if isinstance(s, Apply) and (s.kind, s.name) == (kind, name)
    )


def test_replicas_never_stand_in_the_own_apply(deployment):
    for spec in ({"replicas": 3}, {"replicas": 3, "autoscaling": SCALING}):
        assert "replicas" not in body(plan(deployment(**spec)), DEPLOYMENT)["spec"]


def test_new_deployment_under_an_autoscaler_starts_with_its_replicas(deployment):
    planned = plan(deployment(replicas=3, autoscaling=SCALING))
    assert scales(planned) == {"digits": 3}
    kinds = [kind for kind, _ in child_keys(planned, Apply)]
    assert kinds == [SERVICE, DEPLOYMENT, DEPLOYMENT, AUTOSCALER, DISRUPTION_BUDGET]


@pytest.mark.parametrize(("replicas", "first"), [(None, 2), (1, 2), (50, 10)])
def test_first_replicas_are_within_the_limits(deployment, replicas, first):
    spec = {"autoscaling": SCALING} | ({} if replicas is None else {"replicas": replicas})
    assert scales(plan(deployment(**spec))) == {"digits": first}


def test_autoscaler_keeps_its_replicas(deployment):
    live = [running(7, "kube-controller-manager")]
    assert scales(plan(deployment(replicas=3, autoscaling=SCALING), live)) == {}


def test_switching_autoscaling_on_takes_over_what_runs(deployment):
    live = [running(5, SCALE_MANAGER)]
    assert scales(plan(deployment(replicas=3, autoscaling=SCALING), live)) == {}


def test_switching_autoscaling_off_holds_the_replicas_before_the_autoscaler_goes(deployment):
    live = [running(7, "kube-controller-manager"), child(AUTOSCALER)]
    planned = plan(deployment(autoscaling={**SCALING, "enabled": False}), live)
    assert scales(planned) == {"digits": 7}
    scale, delete = (
        next(n for n, step in enumerate(planned.steps) if isinstance(step, kind) and test(step))
        for kind, test in (
            (Apply, lambda step: step.manager == SCALE_MANAGER),
            (Delete, lambda step: step.kind is AUTOSCALER),
        )
    )
    assert scale < delete


@pytest.mark.parametrize(("replicas", "first"), [(0, 2), (3, 3)])
def test_switching_autoscaling_on_at_zero_starts_pods(deployment, replicas, first):
    """An autoscaler does nothing at 0."""
    live = [running(0, SCALE_MANAGER)]
    assert scales(plan(deployment(replicas=replicas, autoscaling=SCALING), live)) == {
        "digits": first
    }
    keda = {**KEDA, "minReplicas": 0, "triggers": [{"type": "prometheus"}]}
    assert scales(plan(deployment(replicas=0, autoscaling=keda), live)) == {}


def test_zero_that_someone_else_has_set_is_kept_under_an_autoscaler(deployment):
    live = [running(0, "kubectl"), child(AUTOSCALER)]
    assert scales(plan(deployment(replicas=3, autoscaling=SCALING), live)) == {}


def test_switching_autoscaling_off_keeps_more_pods_than_replicas_until_these_change(deployment):
    off = {**SCALING, "enabled": False}
    live = dict([running(10, "kube-controller-manager"), child(AUTOSCALER)])
    hand_over = plan(deployment(replicas=3, autoscaling=off), live)
    assert scales(hand_over) == {"digits": 10}
    assert child_keys(hand_over, Delete) == [(AUTOSCALER, "digits")]
    annotations = body(hand_over, DEPLOYMENT)["metadata"]["annotations"]
    live = dict([running(10, SCALE_MANAGER)])
    live[DEPLOYMENT, "digits"]["metadata"]["annotations"] = annotations
    assert scales(plan(deployment(replicas=3, autoscaling=off), live)) == {"digits": 10}
    assert scales(plan(deployment(replicas=4), live)) == {"digits": 4}
    live[DEPLOYMENT, "digits"]["spec"]["replicas"] = 2
    after = plan(deployment(replicas=3), live)
    assert scales(after) == {"digits": 3}
    assert "annotations" not in body(after, DEPLOYMENT)["metadata"]


def test_unset_replicas_keep_what_runs(deployment):
    assert scales(plan(deployment(), [running(4, "kubectl")])) == {"digits": 4}
    assert scales(plan(deployment())) == {"digits": 1}


def test_the_old_engine_goes_before_the_new_one_comes(deployment):
    live = [running(3, "kube-controller-manager"), child(AUTOSCALER)]
    planned = plan(deployment(autoscaling=KEDA), live)
    steps = [(type(step), step.kind) for step in planned.steps]
    assert steps.index((Delete, AUTOSCALER)) < steps.index((Apply, SCALED_OBJECT))


def test_disruption_budget_goes_with_the_second_replica(deployment):
    planned = plan(deployment(replicas=1), [child(DISRUPTION_BUDGET), running(2, SCALE_MANAGER)])
    assert child_keys(planned, Delete) == [(DISRUPTION_BUDGET, "digits")]


def test_name_that_is_taken_is_not_touched(deployment):
    planned = plan(deployment(), [child(SERVICE, uid="other")])
    assert planned.problem[0] == "NameTaken"
    assert planned.steps == ()


def test_orphans_of_the_operator_are_adopted(deployment):
    """As `kubectl delete --cascade=orphan` leaves them."""
    key, orphan = child(SERVICE, spec={})
    orphan["metadata"]["ownerReferences"] = []
    assert "kubectl label service digits" in plan(deployment(), [(key, orphan)]).problem.message
    orphan["metadata"]["labels"] = body(plan(deployment()), SERVICE)["metadata"]["labels"]
    assert plan(deployment(), [(key, orphan)]).problem is None
    other = plan(deployment("other"), [((SERVICE, "other"), orphan)])
    assert other.problem.reason == "NameTaken"


def test_disruption_budget_is_there_if_autoscaling_may_bring_a_second_replica(deployment):
    planned = plan(deployment(autoscaling={**SCALING, "minReplicas": 1}))
    assert body(planned, DISRUPTION_BUDGET)["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_objects_of_others_are_not_deleted(deployment):
    assert child_keys(plan(deployment(), [child(AUTOSCALER, uid="other")]), Delete) == []


@pytest.mark.parametrize(
    ("spec", "kind"), [({"autoscaling": KEDA}, SCALED_OBJECT), ({"route": ROUTE}, HTTP_ROUTE)]
)
def test_missing_kind_is_named(deployment, spec, kind):
    planned = plan(deployment(**spec), kinds=set(CHILDREN) - {kind})
    assert planned.problem[0] == "KindMissing"
    assert kind.name in planned.problem[1]


def test_model_comes_from_the_store_or_is_missing(deployment):
    spec = {"replicas": 1}
    args = body(plan(deployment(**spec)), DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    assert args[0] == "s3://models/digits"
    planned = plan(deployment(**spec), settings=Settings("serving:1"))
    assert planned.problem[0] == "ModelMissing"
    assert "--model-store" in planned.problem[1]


def test_invalid_object_is_one_problem(deployment):
    planned = plan(deployment(replicas="many"))
    assert planned.problem[0] == "InvalidObject"
    assert planned.problem[1].startswith("spec.replicas: ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"replica": 3}, "spec: unknown field 'replica'."),
        (
            {"autoscaling": {**SCALING, "metrics": [{"type": "CPU", "target": 1.5}]}},
            "spec.autoscaling.metrics.0.target: must be an integer or a text, received 1.5.",
        ),
        (
            {"resources": {"limits": {"a": "x"}}},
            "spec.resources.limits.a: 'x' is not a quantity. Write a number, as 1000, 500m or 2Gi.",
        ),
    ],
)
def test_message_of_an_invalid_object(deployment, spec, message):
    assert plan(deployment(**spec)).problem == ("InvalidObject", message)


def test_any_other_error_is_one_problem(deployment, monkeypatch, caplog):
    def fail(*_):
        raise KeyError("x")

    monkeypatch.setattr(plan_module, "make_scaler", fail)
    planned = plan(deployment(autoscaling=SCALING))
    assert planned.problem == (
        "InternalError",
        "The operator failed on this object, please report it: KeyError('x')",
    )
    assert "digits: no plan could be made" in caplog.text


def test_broken_template_is_one_problem(deployment):
    planned = plan(deployment(template={"spec": {"containers": {"name": "server"}}}))
    assert planned.problem == (
        "TemplateBroken",
        "spec.template.spec.containers must be a list, received {'name': 'server'}.",
    )


CANARY = {"replicas": 3, "route": ROUTE, "canary": {"weight": 20, "image": "serving:2"}}
REGIONS = {
    "route": ROUTE,
    "autoscaling": SCALING,
    "regions": [{"name": "eu", "weight": 70, "minReplicas": 4}, {"name": "us"}],
}


class TestCanary:
    def weights(self, planned):
        (rule,) = body(planned, HTTP_ROUTE)["spec"]["rules"]
        return {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}

    def test_gets_its_weight_when_a_pod_is_ready(self, deployment):
        new = plan(deployment(**CANARY))
        assert self.weights(new) == {"digits": 100, "digits-canary": 0}
        assert scales(new) == {"digits": 3, "digits-canary": 1}
        live = [running(3, SCALE_MANAGER), running(1, SCALE_MANAGER, "digits-canary")]
        assert self.weights(plan(deployment(**CANARY), live)) == {
            "digits": 80,
            "digits-canary": 20,
        }
        live[1] = running(1, SCALE_MANAGER, "digits-canary", ready=0)
        assert self.weights(plan(deployment(**CANARY), live))["digits-canary"] == 0

    @pytest.mark.parametrize(
        ("ready", "routed", "weight"),
        [(1, 0, 20), (2, 20, 40), (3, 40, 60), (1, 60, 20), (0, 60, 0)],
    )
    def test_weight_follows_its_ready_pods(self, deployment, ready, routed, weight):
        spec = {**CANARY, "replicas": 5, "canary": {"weight": 60}}
        live = dict([running(3, SCALE_MANAGER, "digits-canary", ready=ready)])
        backends = [{"name": "digits-canary", "weight": routed}]
        live |= dict([child(HTTP_ROUTE, spec={"rules": [{"backendRefs": backends}]})])
        assert self.weights(plan(deployment(**spec), live))["digits-canary"] == weight

    def test_weight_stays_while_its_autoscaler_adds_pods(self, deployment):
        spec = {**CANARY, "autoscaling": SCALING, "canary": {"weight": 60}}
        live = dict([running(6, SCALE_MANAGER, "digits-canary", ready=3)])
        assert self.weights(plan(deployment(**spec), live))["digits-canary"] == 30
        backends = [{"name": "digits-canary", "weight": 60}]
        live |= dict([child(HTTP_ROUTE, spec={"rules": [{"backendRefs": backends}]})])
        assert self.weights(plan(deployment(**spec), live))["digits-canary"] == 60

    def test_selects_other_pods(self, deployment):
        planned = plan(deployment(**CANARY))
        stable, canary = (
            body(planned, SERVICE, name)["spec"]["selector"] for name in ("digits", "digits-canary")
        )
        assert stable != canary

    @pytest.mark.parametrize(("weight", "replicas"), [(0, 1), (25, 3), (50, 5), (100, 10)])
    def test_gets_the_replicas_of_its_weight(self, deployment, weight, replicas):
        spec = {**CANARY, "replicas": 10, "canary": {"weight": weight}}
        assert scales(plan(deployment(**spec)))["digits-canary"] == replicas

    def test_scales_within_its_weight(self, deployment):
        spec = {**CANARY, "replicas": 8, "autoscaling": SCALING, "canary": {"weight": 20}}
        planned = plan(deployment(**spec))
        limits = body(planned, AUTOSCALER, "digits-canary")["spec"]
        assert (limits["minReplicas"], limits["maxReplicas"]) == (1, 2)
        assert scales(planned) == {"digits": 8, "digits-canary": 2}

    def test_arguments_are_checked(self, deployment):
        spec = {**CANARY, "canary": {"weight": 20, "args": ["--host", "x"]}}
        assert plan(deployment(**spec)).problem.message.startswith("spec.canary.args: --host")


class TestPromotion:
    """The canary's version becomes the stable one, and the canary is removed."""

    def promoted(self, deployment, *, is_seen):
        model_deployment = deployment(replicas=3, route=ROUTE, image="serving:2")
        model_deployment["metadata"]["generation"] = 2
        condition = {"type": "Stalled", "status": "False"}
        observed_generation = 2 if is_seen else 1
        return {
            **model_deployment,
            "status": {"observedGeneration": observed_generation, "conditions": [condition]},
        }

    def live(self, deployment, updated=3):
        live = dict([running(3, SCALE_MANAGER), running(3, SCALE_MANAGER, "digits-canary")])
        live[DEPLOYMENT, "digits"]["status"]["updatedReplicas"] = updated
        live |= dict(child(kind, "digits-canary") for kind in (SERVICE, DISRUPTION_BUDGET))
        route = body(plan(deployment(**CANARY), live), HTTP_ROUTE)
        return live | dict([child(HTTP_ROUTE, spec=route["spec"])])

    def weights(self, planned):
        return TestCanary().weights(planned)

    @pytest.mark.parametrize(("is_seen", "updated"), [(False, 3), (True, 1)])
    def test_canary_keeps_its_share_until_the_rollout_is_complete(
        self, deployment, is_seen, updated
    ):
        promoted = self.promoted(deployment, is_seen=is_seen)
        planned = plan(promoted, self.live(deployment, updated))
        assert child_keys(planned, Delete) == []
        assert self.weights(planned) == {"digits": 80, "digits-canary": 20}

    def test_canary_goes_after_the_route_and_its_service_after_its_pods(self, deployment):
        promoted, live = self.promoted(deployment, is_seen=True), self.live(deployment)
        planned = plan(promoted, live)
        assert self.weights(planned) == {"digits": 100}
        steps = [(type(step), step.kind) for step in planned.steps]
        assert steps.index((Apply, HTTP_ROUTE)) < steps.index((Delete, DEPLOYMENT))
        assert (Delete, SERVICE) not in steps
        live[DEPLOYMENT, "digits-canary"]["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
        live[DEPLOYMENT, "digits"]["status"]["updatedReplicas"] = 1  # Another rollout.
        assert self.weights(plan(promoted, live)) == {"digits": 100}
        assert (DEPLOYMENT, "digits-canary") not in child_keys(plan(promoted, live), Delete)
        assert (SERVICE, "digits-canary") not in child_keys(plan(promoted, live), Delete)
        del live[DEPLOYMENT, "digits-canary"]
        assert (SERVICE, "digits-canary") in child_keys(plan(promoted, live), Delete)


class TestRegions:
    def test_region_overrides(self, deployment):
        planned = plan(deployment(**REGIONS), settings=Settings("s", "s3://m", "eu"))
        assert body(planned, AUTOSCALER)["spec"]["minReplicas"] == 4
        annotations = body(planned, HTTP_ROUTE)["metadata"]["annotations"]
        assert annotations["external-dns.alpha.kubernetes.io/set-identifier"] == "eu"
        assert annotations["external-dns.alpha.kubernetes.io/aws-weight"] == "70"

    def test_unlisted_region_makes_nothing_and_removes_what_it_made(self, deployment):
        live = self.made_for("asia")
        planned = plan(deployment(**REGIONS), live, settings=Settings("s", "s3://m", "asia"))
        assert child_keys(planned, Apply) == []
        assert child_keys(planned, Delete) == [(DEPLOYMENT, "digits")]
        assert "'asia' isn't listed" in planned.notice

    def made_for(self, region):
        key, live_deployment = running(3, SCALE_MANAGER)
        live_deployment["metadata"]["annotations"] = (
            {"deepseek.io/region": region} if region else {}
        )
        return [(key, live_deployment)]

    @pytest.mark.parametrize("region", ["eu", None])
    def test_mistaken_region_deletes_nothing(self, deployment, region):
        settings = Settings("s", "s3://m", "EU")
        planned = plan(deployment(**REGIONS), self.made_for(region), settings=settings)
        assert planned.steps == ()
        assert planned.problem.reason == "RegionChanged"
        assert "correct the operator's --region" in planned.problem.message

    def test_children_name_their_region(self, deployment):
        planned = plan(deployment(**REGIONS), settings=Settings("s", "s3://m", "eu"))
        for step in planned.steps:
            if step.manager != SCALE_MANAGER:
                assert step.body["metadata"]["annotations"]["deepseek.io/region"] == "eu"

    def test_empty_region_is_refused(self):
        with pytest.raises(InvalidInputError, match="--region is empty"):
            Settings("s", region="")


def test_owners_of_replicas():
    assert owners_of_replicas(running(1, "kubectl")[1]) == {"kubectl"}
    assert owners_of_replicas(None) == set()

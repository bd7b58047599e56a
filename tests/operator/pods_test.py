"""The pod template: what `serve` is told, and partial templates merged into it."""

import pytest

from keras_deepseek.operator.api import Model, ModelDeploymentSpec
from keras_deepseek.operator.pods import check_arguments, make_pod_template, merge
from keras_deepseek.operator.problems import PlanError

DIGEST = "sha256:" + "a" * 64


def template(model=None, args=(), partial=None, **spec):
    deployment_spec = ModelDeploymentSpec.model_validate(spec)
    model = None if model is None else Model(uri=model)
    return make_pod_template(
        "digits",
        {"a": "b"},
        model,
        "serving:1",
        args,
        deployment_spec,
        {"spec.template": partial or {}},
    )


def server(pod_template):
    return next(
        container
        for container in pod_template["spec"]["containers"]
        if container["name"] == "server"
    )


@pytest.mark.parametrize(
    ("uri", "argument", "volume"),
    [
        (None, "/models/model", None),
        ("s3://models/digits", "s3://models/digits", None),
        (
            "pvc://claim/a/b",
            "/models/model",
            {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}},
        ),
        (
            f"oci://registry/model@{DIGEST}",
            "/models/model",
            {"image": {"reference": f"registry/model@{DIGEST}", "pullPolicy": "IfNotPresent"}},
        ),
    ],
)
def test_model(uri, argument, volume):
    pod_template = template(uri)
    assert server(pod_template)["args"][0] == argument
    volumes = {entry.pop("name"): entry for entry in pod_template["spec"]["volumes"]}
    assert volumes.get("model") == volume
    assert ("--cache-dir" in server(pod_template)["args"]) == (argument == uri)


def test_grace_period_is_above_the_limits_of_serve():
    assert template()["spec"]["terminationGracePeriodSeconds"] > 20 + 30
    args = ["--limit", "unready_seconds=40", "--limit=grace_seconds=60"]
    pod_template = template(args=args)
    assert pod_template["spec"]["terminationGracePeriodSeconds"] > 40 + 60
    assert [word for word in server(pod_template)["args"] if "unready" in word] == [
        "unready_seconds=40"
    ]


def test_batching_and_resources():
    pod_template = template(
        batching={"maxBatchSize": 64, "targetLatency": "200m", "maxQueueRows": 4096},
        resources={"limits": {"memory": "1024Mi", "cpu": "1000m"}},
    )
    words = " ".join(server(pod_template)["args"])
    assert "--max-batch-size 64 --target-latency 0.2 --max-queue-rows 4096" in words
    assert server(pod_template)["resources"] == {"limits": {"memory": "1Gi", "cpu": "1"}}


def test_partial_template_is_merged_by_name():
    partial = {
        "metadata": {"labels": {"team": "vision", "a": "other"}},
        "spec": {
            "containers": [
                {"name": "server", "env": [{"name": "TOKEN", "value": "x"}]},
                {"name": "sidecar", "image": "proxy"},
            ],
            "tolerations": [{"operator": "Exists"}],
            "topologySpreadConstraints": None,
        },
    }
    pod_template = template(partial=partial)
    assert [container["name"] for container in pod_template["spec"]["containers"]] == [
        "server",
        "sidecar",
    ]
    assert [variable["name"] for variable in server(pod_template)["env"]] == ["HOME", "TOKEN"]
    assert pod_template["spec"]["tolerations"] == [{"operator": "Exists"}]
    assert "topologySpreadConstraints" not in pod_template["spec"]
    assert pod_template["metadata"]["labels"] == {"team": "vision", "a": "b"}


@pytest.mark.parametrize(
    ("partial", "message"),
    [
        ({"spec": []}, r"template.spec must be an object, received \[\]"),
        (
            {"spec": {"containers": [{"image": "x"}]}},
            "spec.template.spec.containers: each item needs a name",
        ),
        (
            {"spec": {"containers": [{"name": ["x"]}]}},
            "spec.template.spec.containers: each item needs a name",
        ),
        ({"spec": None}, "must not remove spec.containers"),
        ({"spec": {"containers": None}}, "must not remove spec.containers"),
        (
            {"spec": {"containers": [{"name": "server", "resources": {"limits": {"cpu": "1x"}}}]}},
            r"containers\[server\].resources: '1x' is not a quantity",
        ),
    ],
)
def test_broken_partial_template(partial, message):
    with pytest.raises(PlanError, match=message):
        template(partial=partial)


@pytest.mark.parametrize("resources", [[True], {"limits": ["x"]}, {"limits": False, "claims": []}])
def test_resources_of_another_form_are_left_for_the_api_server(resources):
    partial = {"spec": {"containers": [{"name": "sidecar", "resources": resources}]}}
    assert template(partial=partial)["spec"]["containers"][1]["resources"] == resources


def test_volumes_and_actions_of_probes_take_the_place_of_others():
    claim = {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    container = {"name": "server", "startupProbe": probe}
    pod_template = template(partial={"spec": {"volumes": [claim], "containers": [container]}})
    assert pod_template["spec"]["volumes"] == [{"name": "tmp", "emptyDir": {}}, claim]
    startup = server(pod_template)["startupProbe"]
    assert (startup["exec"], startup["periodSeconds"]) == (probe["exec"], 1)
    assert "httpGet" not in startup
    assert "failureThreshold" in startup


def test_merge_replaces_lists_without_names():
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--http-port", "9000"], "--http-port is set by the operator. Remove it."),
        (["--host=::"], "--host is set by the operator. Remove it."),
        (["--name", "x"], "--name is set by the operator. Set spec.model.name instead."),
        (
            ["--limit", "grace_seconds=inf"],
            "--limit grace_seconds must be seconds as a number, received 'inf'.",
        ),
        (["--limit=unready_seconds=20s"], "must be seconds as a number, received '20s'."),
    ],
)
def test_arguments_that_do_not_fit_are_refused(args, message):
    with pytest.raises(PlanError) as caught:
        check_arguments(args, "spec.args")
    assert str(caught.value).startswith("spec.args: ")
    assert str(caught.value).endswith(message)
    assert caught.value.problem.reason == "InvalidObject"


def test_pods_spread_over_zones_and_nodes():
    constraints = template()["spec"]["topologySpreadConstraints"]
    keys = [constraint["topologyKey"] for constraint in constraints]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]

"""What `render` prints, read again as YAML."""

import pytest
import yaml

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator.kinds import CHILDREN
from keras_deepseek.operator.plan import Settings
from keras_deepseek.operator.render import render_objects

SETTINGS = Settings("serving:1", model_store="s3://models")
HEAD = "apiVersion: deepseek.io/v1\nkind: ModelDeployment\n"
OBJECT = """
apiVersion: deepseek.io/v1
kind: ModelDeployment
metadata: {name: nlp-service}
spec:
  replicas: 3
  autoscaling:
    {enabled: true, minReplicas: 2, maxReplicas: 10,
     metrics: [{type: RequestsPerSecond, target: 1000}]}
"""


def test_renders_the_objects_of_an_empty_cluster(tmp_path):
    file = tmp_path / "object.yaml"
    file.write_text(OBJECT)
    manifests = {
        manifest["kind"]: manifest
        for manifest in yaml.safe_load_all(render_objects(str(file), SETTINGS))
    }
    assert set(manifests) == {
        "Service",
        "Deployment",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    }
    # An apply of these files must not undo what the autoscaler did.
    assert "replicas" not in manifests["Deployment"]["spec"]
    for manifest in manifests.values():
        assert not {"ownerReferences", "namespace"} & manifest["metadata"].keys()


def test_a_canary_gets_its_weight(tmp_path):
    file = tmp_path / "object.yaml"
    route = "canary: {weight: 20}\n  route: {gateway: {name: main}}"
    file.write_text(f"{OBJECT.partition('autoscaling')[0]}{route}")
    manifests = list(yaml.safe_load_all(render_objects(str(file), SETTINGS)))
    (route,) = [manifest for manifest in manifests if manifest["kind"] == "HTTPRoute"]
    backends = route["spec"]["rules"][0]["backendRefs"]
    assert [backend["weight"] for backend in backends] == [80, 20]
    replicas = [
        manifest["spec"]["replicas"] for manifest in manifests if manifest["kind"] == "Deployment"
    ]
    assert replicas == [3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no objects"),
        ("a: [", "is not YAML"),
        (HEAD.replace("ModelDeployment", "Pod"), "kind 'Pod'. Expected 'deepseek.io/v1'"),
        (HEAD.replace("v1", "v2"), "apiVersion 'deepseek.io/v2' and kind"),
        (HEAD, "has no metadata.name"),
        ("- 1", "Expected 'deepseek.io/v1'"),
        (f"{HEAD}metadata: {{name: a}}\nspec: {{replica: 3}}", "spec: unknown field 'replica'"),
    ],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "object.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        render_objects(str(file), SETTINGS)


def test_missing_file(tmp_path):
    with pytest.raises(InvalidInputError, match="Can't read"):
        render_objects(str(tmp_path / "none.yaml"), SETTINGS)


@pytest.mark.parametrize("name", ["nlp-service", "canary", "keda"])
def test_examples_of_the_repository(root, name):
    file = root / f"kubernetes/examples/{name}.yaml"
    assert list(yaml.safe_load_all(render_objects(str(file), SETTINGS)))


def test_rights_cover_what_is_written(root):
    """A ClusterRole without a right would show only on a cluster."""
    roles = list(yaml.safe_load_all((root / "kubernetes/base/rbac.yaml").read_text()))
    rules = next(role for role in roles if role["kind"] == "ClusterRole")["rules"]
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for kind in CHILDREN:
        group = kind.api_version.rpartition("/")[0]
        assert granted[group, kind.plural] >= {"get", "list", "create", "patch", "delete"}
    assert not any("*" in str(rule) or "secrets" in str(rule) for rule in rules)

"""What is shipped for Kubernetes, read by kustomize, Helm and the schemas of built-in kinds."""

import json
import os
import shutil
import subprocess

import pytest
import yaml

from cluster_tests.cluster import ROOT
from keras_deepseek import __version__
from keras_deepseek.cli import main

helm = pytest.importorskip("helm_python")
validate = pytest.importorskip("kubernetes_validate")
CHART = str(ROOT / "kubernetes/chart")
EXAMPLES = ("canary", "keda", "nlp-service")
CUSTOM = {"HTTPRoute", "ScaledObject"}


def read_kustomization(folder="base"):
    command = ["kubectl", "kustomize", str(ROOT / "kubernetes" / folder)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


def read_chart(**values):
    chart = helm.Chart.load(CHART)
    namespace = "keras-deepseek"
    rendered = chart.render(values, name="operator", namespace=namespace)
    texts = rendered.values() if isinstance(rendered, dict) else [rendered]
    return {
        manifest["kind"]: manifest
        for text in texts
        for manifest in yaml.safe_load_all(text)
        if manifest is not None
    }


def without_namespace(manifest):
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
    return {**manifest, "metadata": metadata}


def test_chart_is_the_kustomize_base():
    base, chart = read_kustomization(), read_chart()
    assert set(chart) == set(base) - {"Namespace", "CustomResourceDefinition"}
    for kind, manifest in chart.items():
        assert manifest == without_namespace(base[kind]), kind


def test_chart_brings_the_crd():
    assert len(helm.Chart.load(CHART).crds) == 1


def test_helm_and_kubectl_share_the_crd(definition, kubectl, tmp_path):
    """By the command of the documentation, whichever comes first. The CRD alone is installed."""
    file = ROOT / "kubernetes/base/crd.yaml"
    apply = ("apply", "--server-side", "--force-conflicts", "-f")
    kubectl(*apply, str(file))
    shutil.copytree(CHART, tmp_path / "chart", ignore=shutil.ignore_patterns("templates"))
    config = helm.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace=kubectl.namespace)
    assert config.install(tmp_path / "chart", "operator")["status"] == "deployed"
    other = tmp_path / "crd.yaml"
    other.write_text(file.read_text().replace("by a number of pods", "by pods"))
    kubectl(*apply, str(other))
    assert config.upgrade(tmp_path / "chart", "operator")["status"] == "deployed"
    kubectl(*apply, str(file))


def test_chart_with_values_is_the_kustomize_example():
    registry = "registry.example.com"
    args = ["--serving-image", f"{registry}/keras-deepseek-serving:{__version__}"]
    args += ["--model-store", "s3://models"]
    image = f"{registry}/keras-deepseek-operator:{__version__}"
    chart = read_chart(image=image, args=args)["Deployment"]
    assert chart == without_namespace(read_kustomization("examples/operator")["Deployment"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arguments": ["--region", "eu"]}, "additional properties 'arguments' not allowed"),
        ({"args": "--region eu"}, "got string, want array"),
        ({"args": [3]}, "got number, want string"),
        ({"image": None}, "missing property 'image'"),
    ],
)
def test_mistyped_values_of_the_chart_are_refused(values, message):
    with pytest.raises(helm.HelmValuesError, match=message):
        read_chart(**values)


def test_helm_lint_finds_nothing():
    report = helm.lint(CHART, strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


def test_versions_are_that_of_the_package():
    chart = yaml.safe_load((ROOT / "kubernetes/chart/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    for objects in (read_chart(), read_kustomization()):
        (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"keras-deepseek-operator:{__version__}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_built_in_kinds_fit_their_schemas(name, capsys):
    file = str(ROOT / f"kubernetes/examples/{name}.yaml")
    assert main(["operator", "render", "--model-store", "s3://models", "-f", file]) == 0
    for manifest in yaml.safe_load_all(capsys.readouterr().out):
        if manifest["kind"] not in CUSTOM:
            validate.validate(manifest, "1.37", strict=True)


def test_base_fits_the_schemas():
    for manifest in read_kustomization().values():
        validate.validate(manifest, "1.37", strict=True)


def test_arguments_of_pods_are_those_of_serve(capsys):
    """`serve`'s own parser reads all arguments that a pod gets."""
    from keras_deepseek.cli import _make_parser

    for name in EXAMPLES:
        file = str(ROOT / f"kubernetes/examples/{name}.yaml")
        assert main(["operator", "render", "--model-store", "s3://models", "-f", file]) == 0
        for manifest in yaml.safe_load_all(capsys.readouterr().out):
            if manifest["kind"] == "Deployment":
                (container,) = manifest["spec"]["template"]["spec"]["containers"]
                parsed = _make_parser().parse_args(["serve", *container["args"]])
                assert parsed.name


def test_dashboard_fits_the_published_schema():
    """Grafana's own package reads every field of the dashboard, and writes it again."""
    pytest.importorskip("grafana_foundation_sdk")
    from grafana_foundation_sdk.cog import encoder, plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    text = (ROOT / "kubernetes/examples/grafana-dashboard.json").read_text()
    written = json.loads(text)
    read = json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(written)))
    assert list(lost_fields(written, read)) == []


def lost_fields(written, read, path=""):
    """Yields the places of a JSON value that differ in another one, which may have more fields."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from lost_fields(value, read.get(key), f"{path}.{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, (written_entry, read_entry) in enumerate(zip(written, read, strict=True)):
            yield from lost_fields(written_entry, read_entry, f"{path}[{index}]")
    elif written != read:
        yield path

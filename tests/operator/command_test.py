"""The command line, from its arguments to its output."""

import pytest
import yaml

from keras_deepseek.cli import main

OBJECT = """
apiVersion: deepseek.io/v1
kind: ModelDeployment
metadata: {name: digits}
spec: {replicas: 2}
"""


def test_render(tmp_path, capsys):
    file = tmp_path / "object.yaml"
    file.write_text(OBJECT)
    flags = ["--model-store", "s3://models", "--serving-image", "mine:1"]
    assert main(["operator", "render", *flags, "-f", str(file)]) == 0
    kinds = [manifest["kind"] for manifest in yaml.safe_load_all(capsys.readouterr().out)]
    assert kinds == ["Service", "Deployment", "PodDisruptionBudget"]


def test_render_the_crd(capsys):
    assert main(["operator", "render", "--crds-only"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "CustomResourceDefinition"


def test_render_of_a_bad_object(tmp_path, capsys):
    file = tmp_path / "object.yaml"
    file.write_text(OBJECT)
    assert main(["operator", "render", "-f", str(file)]) == 2
    assert "digits: The object names no model." in capsys.readouterr().err


@pytest.mark.parametrize("store", ["", "models"])
def test_a_model_store_that_is_no_uri(store, capsys):
    assert main(["operator", "run", "--model-store", store]) == 2
    assert f"--model-store {store!r}: the uri needs a scheme" in capsys.readouterr().err


def test_size(tmp_path, capsys):
    file = tmp_path / "day.csv"
    file.write_text("\n".join(["1000"] * 300))
    assert main(["operator", "size", "--capacity", "100", "--traffic", str(file)]) == 0
    assert "100.0000% answered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--capacity", "0"], "`--capacity` must be"),
        (["--capacity", "1", "--traffic", "flsh"], "did you mean 'flash'?"),
        (["--capacity", "1", "--traffic", "a.csv"], "There is no file of this name either"),
        (["--capacity", "1", "--success", "0.999"], "--success must be a percentage"),
        (["--capacity", "1", "--success", "101"], "--success must be a percentage"),
        (["--capacity", "1", "--max-replicas", "1"], "`--max-replicas` must be"),
        (["--url", "http://127.0.0.1:9"], "Add --body FILE"),
        (["--url", "http://127.0.0.1:9", "--body", "/none"], "Can't read /none"),
    ],
)
def test_bad_sizes(flags, message, capsys):
    assert main(["operator", "size", *flags]) == 2
    assert message in capsys.readouterr().err

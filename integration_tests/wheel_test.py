"""What the wheel holds, and that a bare installation of it answers."""

import zipfile
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[1] / "guides/01_quickstart.py"


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_is_pure_python(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_holds_the_package_alone(names):
    tops = {name.partition("/")[0] for name in names}
    (metadata,) = tops - {"keras_deepseek"}
    assert metadata.endswith(".dist-info")
    assert [name for name in names if name.endswith(("_test.py", "conftest.py"))] == []
    assert [name for name in names if "/tests/" in name or "/oracles/" in name] == []


def test_the_wheel_holds_its_licence_and_the_mark_of_typed_packages(names):
    assert "keras_deepseek/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_package_is_the_wheel_s(installation):
    code = "import keras_deepseek; print(keras_deepseek.__file__)"
    done = installation.run("python", "-c", code)
    assert done.stdout.startswith(str(installation.folder)), done.stderr


def test_the_version_is_that_of_the_wheel(installation, wheel):
    done = installation.run("keras-deepseek", "--version")
    assert done.stdout.split() == ["keras-deepseek", wheel.name.split("-")[1]]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["export", "serve"]),
        (["export"], ["MODEL.keras", "--format", "--output"]),
        (["serve"], ["PATH", "--name", "--http-port"]),
    ],
)
def test_help_is_there_at_each_level(installation, command, words):
    done = installation.run("keras-deepseek", *command, "--help")
    assert done.returncode == 0
    assert [word for word in words if word not in done.stdout] == []
    assert done.stderr == ""


def test_the_quickstart_runs(installation):
    needed = ("matplotlib", "scikit-learn")
    done = installation.run("python", "-m", "pip", "install", "--quiet", *needed)
    assert done.returncode == 0, done.stderr
    done = installation.run("python", QUICKSTART)
    assert done.returncode == 0, done.stdout + done.stderr

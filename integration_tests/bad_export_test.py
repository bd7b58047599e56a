"""Exports that can't be: one line that helps, and nothing left behind."""

import subprocess

import pytest

MAKE_CUSTOM = """
import sys
import keras
sys.path.insert(0, ".")
from doubling import Doubling

model = keras.Sequential([keras.Input((4,), name="x"), Doubling(), keras.layers.Dense(2)])
model.save("custom.keras")
keras.Sequential([keras.layers.Dense(2)]).save("unbuilt.keras")
wide = [keras.Input((64,)), keras.layers.Dense(256), keras.layers.Dense(8)]
keras.Sequential(wide).save("wide.keras")
"""
DOUBLING = """
import keras


@keras.saving.register_keras_serializable("doubling")
class Doubling(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""


@pytest.fixture(scope="module")
def models(installation):
    """Returns the folder of three `.keras` files, and of the module of a custom layer."""
    (installation.folder / "doubling.py").write_text(DOUBLING, encoding="utf-8")
    done = installation.run("python", "-c", MAKE_CUSTOM)
    assert done.returncode == 0, done.stderr
    return installation.folder


@pytest.fixture
def refuse(installation, models, tmp_path, assert_refused):
    def run(model, *words, backend="onnx", out=None):
        out = out or tmp_path / "out"
        done = installation.run(
            "keras-deepseek", "export", models / model, "--format", backend, "-o", out
        )
        assert_refused(done, "export", *words)
        assert not out.exists()
        remaining = out.parent.iterdir() if out.parent.is_dir() else ()
        assert not any(path.name.startswith(".") for path in remaining)

    return run


def test_a_model_that_is_not_built(refuse):
    refuse("unbuilt.keras", "not built", "Input")


def test_a_custom_layer_is_asked_for_by_its_module(installation, models, refuse, tmp_path):
    refuse("custom.keras", "Doubling", "custom")
    (models / "elsewhere").mkdir(exist_ok=True)
    module = (models / "doubling.py").rename(models / "elsewhere" / "doubling_of_others.py")
    try:
        done = installation.run(
            *("keras-deepseek", "export", models / "custom.keras", "--format", "onnx"),
            *("-o", tmp_path / "out", "--custom-objects-from", module),
        )
        assert done.returncode == 0, done.stderr
        assert "verified" in done.stdout
    finally:
        module.rename(models / "doubling.py")


@pytest.mark.parametrize(("backend", "extra"), [("openvino", "openvino"), ("tensorrt", "tensorrt")])
def test_an_extra_that_is_missing_is_named(refuse, backend, extra):
    refuse("wide.keras", f"keras_deepseek[{extra}", backend=backend)


def test_a_folder_that_can_not_be_made(refuse, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    refuse("wide.keras", str(tmp_path / "file"), out=tmp_path / "file" / "out")


@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_a_disk_that_is_full(refuse, tmp_path, backend):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk is mounted by root alone")
    try:
        refuse("wide.keras", "is full", str(mount), backend=backend, out=mount / "out")
    finally:
        subprocess.run(["umount", str(mount)], check=True)

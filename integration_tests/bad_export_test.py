"""Exports that can't be, or that are killed: one line that helps, and nothing that opens."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from integration_tests.bad_input_test import assert_refused

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
TRIES = (0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05)
"""When an export is killed, as a share of the time that it took; by the last it may be through."""


@pytest.fixture(scope="module")
def models(installation):
    """Returns the folder of three `.keras` files, and of the module of a custom layer."""
    (installation.folder / "doubling.py").write_text(DOUBLING, encoding="utf-8")
    done = installation.run("python", "-c", MAKE_CUSTOM)
    assert done.returncode == 0, done.stderr
    return installation.folder


@pytest.fixture
def refuse(installation, models, tmp_path):
    def run(model, *words, backend="onnx", out=None):
        out = out or tmp_path / "out"
        done = installation.run(
            "keras-deepseek", "export", models / model, "--backend", backend, "-o", out
        )
        assert_refused(done, "export", *words)
        assert not out.exists()
        left = out.parent.iterdir() if out.parent.is_dir() else ()
        assert not any(path.name.startswith(".") for path in left)

    return run


def test_a_model_that_is_not_built(refuse):
    refuse("unbuilt.keras", "not built", "Input")


def test_a_custom_layer_is_asked_for_by_its_module(installation, models, refuse, tmp_path):
    refuse("custom.keras", "Doubling", "custom")
    (models / "elsewhere").mkdir(exist_ok=True)
    module = (models / "doubling.py").rename(models / "elsewhere" / "doubling_of_others.py")
    try:
        done = installation.run(
            *("keras-deepseek", "export", models / "custom.keras", "--backend", "onnx"),
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


@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_an_export_that_is_killed_leaves_nothing_that_opens(
    installation, models, tmp_path, backend
):
    """The folder is there whole or not at all, whenever the kill comes; then an export works."""
    out = tmp_path / "out"
    command = ["keras-deepseek", "export", models / "wide.keras", "--backend", backend, "-o", out]
    check = [*command, "--check"]
    began = time.monotonic()
    assert installation.run(*command).returncode == 0
    seconds = time.monotonic() - began
    num_whole = 0
    for share in TRIES:
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(
            [str(installation.programs / command[0]), *map(str, command[1:])],
            cwd=installation.folder,
            env=installation.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(share * seconds)  # When it is killed is what is tried.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if out.exists():
            num_whole += 1
            assert installation.run(*check).returncode == 0
    print(f"{backend}: whole after {num_whole} of {len(TRIES)} kills, nothing after the others")
    done = installation.run(*command)
    assert done.returncode == 0, done.stderr
    assert installation.run(*check).returncode == 0

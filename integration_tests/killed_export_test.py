"""Exports that are killed: the folder is there whole, or nothing is that a loader opens."""

import os
import shutil
import signal
import subprocess
import time

import pytest

TRIES = (0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05)
"""When an export is killed, as a share of the time that it took; by the last it may be through."""


@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_an_export_that_is_killed_leaves_nothing_that_opens(
    installation, model_file, tmp_path, backend
):
    """The folder is there whole or not at all, whenever the kill comes; then an export works."""
    out = tmp_path / "out"
    command = ["keras-deepseek", "export", model_file, "--format", backend, "-o", out]
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

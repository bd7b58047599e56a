"""Trainings whose state is divided among processes, which end, are killed, and go on as others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ORACLE = Path(__file__).parents[2] / "oracles" / "divided_state.py"
SECONDS = 300
EPOCHS = 4
IS_JAX = keras.backend.backend() == "jax"

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(6 * SECONDS)]


def run(num_processes, out, folder, epochs, way, *kill):
    """Returns the ended program."""
    command = [sys.executable]
    if num_processes > 1:
        command += ["-m", "keras_deepseek.cli", "launch", "--nproc", str(num_processes)]
    out.mkdir(exist_ok=True)
    arguments = [ORACLE, out, folder, epochs, way, *kill]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ORACLE.parents[2])},
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )


def train(num_processes, out, *arguments):
    """Returns what each process found, or `None` if one was killed."""
    done = run(num_processes, out, *arguments)
    if len(arguments) > 3:
        assert done.returncode != 0
        return None
    assert done.returncode == 0, done.stdout + done.stderr
    return [np.load(out / f"{rank}.npz") for rank in range(num_processes)]


def test_a_folder_that_is_not_shared_is_refused_before_the_first_step(tmp_path):
    done = run(2, tmp_path / "out", tmp_path / "rank_{rank}", EPOCHS, "slices")
    assert "rank 1 does not see the folder of rank 0" in done.stdout + done.stderr
    assert not [*tmp_path.glob("rank_*/*")]


WAYS = pytest.mark.parametrize(
    "way",
    [
        "slices",
        "weights",
        pytest.param("fsdp", marks=pytest.mark.skipif(not IS_JAX, reason="JAX alone has it.")),
    ],
)


@WAYS
def test_a_training_goes_on_with_any_number_of_processes(tmp_path, way):
    whole = train(4, tmp_path / "whole", tmp_path / "alone", EPOCHS, way)
    first = tmp_path / "first"
    train(4, tmp_path / "half", first, EPOCHS // 2, way)
    counts = {}
    for number in (4, 2, 8, 1):
        folder = tmp_path / f"checkpoints_{number}"
        shutil.copytree(first, folder)
        ranks = train(number, tmp_path / f"resumed_{number}", folder, EPOCHS, way)
        for name in ("losses", "weights"):
            tolerance = 0 if number == 4 else 1e-5
            for rank in ranks:
                np.testing.assert_allclose(rank[name], whole[0][name], rtol=0, atol=tolerance)
        counts[number] = [sum(rank["num_read"]) for rank in ranks]
    # The state is restored several times, from the pieces that a process needs.
    assert max(counts[4]) < 0.6 * counts[1][0]
    if way == "slices":
        assert max(counts[4]) < 0.3 * counts[1][0]
        assert max(counts[2]) < 0.55 * counts[1][0]
        assert max(counts[8]) < 0.3 * counts[1][0]


@WAYS
@pytest.mark.parametrize(
    ("rank", "phase"), [(1, "before"), (2, "within"), (0, "within"), (0, "after"), (2, "after")]
)
def test_a_training_that_is_killed_in_a_write_goes_on_from_a_whole_checkpoint(
    tmp_path, way, rank, phase
):
    whole = train(3, tmp_path / "whole", tmp_path / "alone", EPOCHS, way)
    folder = tmp_path / "killed"
    for save in (1, 3):  # The first of all, and the second of those after it.
        train(3, tmp_path / "killed_out", folder, EPOCHS, way, rank, save, phase)
    ranks = train(3, tmp_path / "resumed", folder, EPOCHS, way)
    for name in ("losses", "weights"):
        for rank_values in ranks:
            np.testing.assert_array_equal(rank_values[name], whole[0][name])
    names = sorted(path.name for path in folder.iterdir())
    steps = {name.split(".")[0] for name in names}
    assert len(names) == 3 * len(steps), names  # Nothing of the killed ones is left.


@pytest.mark.timeout(60 * SECONDS)
def test_what_is_killed_in_any_phase_of_a_step_goes_on(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ORACLE.with_name("killed_ranks.py")), str(tmp_path), "--kills", "20"],
        env={**os.environ, "PYTHONPATH": str(ORACLE.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"right": true') == 20

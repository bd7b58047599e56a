"""The memory of processes that load and save a preset whose weights they have together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.oracles.preset_memory import build


@pytest.mark.nightly
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras shards variables on JAX alone.")
@pytest.mark.skipif(sys.platform != "linux", reason="The peak is read as Linux counts it.")
def test_no_process_holds_weights_of_which_it_has_a_part(tmp_path):
    build().save_to_preset(tmp_path / "one", verbose=False)
    root = Path(__file__).parents[3]
    launch = [sys.executable, "-m", "keras_deepseek.cli", "launch", "--nproc", "2"]
    result = subprocess.run(
        [*launch, str(root / "tests" / "oracles" / "preset_memory.py"), str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "MALLOC_MMAP_THRESHOLD_": "65536",  # Arrays that are freed go back to the system.
        },
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["part"] < 0.51 * report["whole"]
        few_matrices = 6 * report["largest"]
        assert report["loading"] < report["part"] + few_matrices < 0.85 * report["whole"]
        assert report["saving"] < few_matrices
    index = json.loads((tmp_path / "two" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    assert index["metadata"]["total_size"] == report["whole"]

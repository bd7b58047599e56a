import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ORACLE = Path(__file__).parents[1] / "oracles" / "program_replicas.py"
TIMEOUT = 120


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="One program runs on JAX alone.")
def test_devices_of_one_program_sum_what_they_find_and_keep_what_is_their_own():
    done = subprocess.run(
        [sys.executable, str(ORACLE)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""Two processes that train together, on a GPU each: NCCL, or on CPUs gloo and gRPC."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from gpu_tests.place import Place, Skipped, full_float32
from gpu_tests.training_checks import train
from keras_deepseek.testing import assert_close

SECONDS = 75


def check_two_processes(target: Place) -> str:
    """Trains by `keras-deepseek launch --nproc 2` to the numbers of one process."""
    if target.is_gpu and target.count < 2:
        raise Skipped("one GPU alone: NCCL joins two")
    with full_float32():
        _, expected = train(device_map={target.kind: 0})
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "keras_deepseek.cli", "launch", "--nproc", "2"]
        # The two CPUs of a dry run are for one process.
        environment = {name: os.environ[name] for name in os.environ if name != "XLA_FLAGS"}
        environment["NCCL_DEBUG"] = "VERSION"  # NCCL says that it is used.
        done = subprocess.run(
            [*launch, __file__, folder],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        files = sorted(Path(folder).glob("*.json"))
        losses = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert len(losses) == 2, f"{len(losses)} processes have written their losses"
    for rank, rank_losses in enumerate(losses):
        assert_close(target.measured(rank_losses), expected, 1e-3, f"Losses of rank {rank}")
    difference = np.abs(np.subtract(losses, expected)).max()
    nccl = re.search(r"NCCL version (\S+)", done.stdout + done.stderr)
    by = f"NCCL {nccl[1]}" if nccl else "NCCL has not said a word"
    text = f"losses of both differ from one process's by {difference:.1g}"
    return f"{text}; {by}" if target.is_gpu else text


def main() -> None:
    """Trains as one of the processes, and writes the losses."""
    with full_float32():
        trainer, losses = train(distributed_strategy="allreduce")
    file = Path(sys.argv[1]) / f"rank_{trainer.cluster.rank}.json"
    file.write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()

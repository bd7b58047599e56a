"""Prints the losses of each guide's first steps on each backend, to the last bit.

Run it before and after a change that is to leave every number as it was:

    python guides/losses.py --write before.json
    python guides/losses.py --compare before.json
"""

import argparse
import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

GUIDES = sorted(Path(__file__).resolve().parent.glob("[0-9]*.py"))
BACKENDS = ("torch", "jax", "tensorflow")
NUM_STEPS = 20


class _EnoughStepsError(Exception):
    """Ends a guide after its first steps."""


def print_losses(guide: str) -> None:
    """Runs a guide until its trainers have made enough steps, and prints their losses as JSON."""
    import keras

    from keras_deepseek.training import Trainer

    losses: list[str] = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(float(logs["loss"]).hex())
            if len(losses) == NUM_STEPS:
                raise _EnoughStepsError

    fit = Trainer.fit

    def recorded_fit(self, *arguments, **options):
        self.add_callback(Record())
        return fit(self, *arguments, **options)

    Trainer.fit = recorded_fit
    with contextlib.suppress(_EnoughStepsError):
        runpy.run_path(guide, run_name="__main__")
    print(json.dumps(losses))


def run_all() -> dict[str, list[str]]:
    """Returns the losses by guide and backend, each run in a process of its own."""
    losses_by_run = {}
    for guide in GUIDES:
        for backend in BACKENDS:
            with tempfile.TemporaryDirectory() as folder:  # Where it leaves its files.
                ended = subprocess.run(
                    [sys.executable, Path(__file__).resolve(), "--guide", str(guide)],
                    cwd=folder,
                    # With more threads PyTorch adds in another order.
                    env={**os.environ, "KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            losses = json.loads(ended.stdout.splitlines()[-1])
            losses_by_run[f"{guide.stem} {backend}"] = losses
            last = float.fromhex(losses[-1]) if losses else "no Trainer"
            print(f"{guide.stem:20} {backend:10} {last}", flush=True)
    return losses_by_run


def main() -> int:
    """Writes the losses to a file, or compares them with one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a JSON file to write the losses to")
    parser.add_argument("--compare", type=Path, help="a JSON file that --write has written")
    parser.add_argument("--guide", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.guide:
        print_losses(arguments.guide)
        return 0
    losses_by_run = run_all()
    if arguments.write:
        arguments.write.write_text(json.dumps(losses_by_run, indent=1) + "\n", encoding="utf-8")
    if not arguments.compare:
        return 0
    old_losses = json.loads(arguments.compare.read_text(encoding="utf-8"))
    changed = [name for name in losses_by_run if losses_by_run[name] != old_losses.get(name)]
    total = len(losses_by_run)
    print(f"{total - len(changed)} of {total} equal to the last bit. {changed or ''}")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())

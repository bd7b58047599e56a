"""Trainings with sharded state, of which a process is killed: each goes on, as if nothing was.

    KERAS_BACKEND=torch python tests/oracles/killed_ranks.py FOLDER [--kills 20] [--seed 0]

Each training is killed in a phase of a step: while gradients are summed, in the update, while
weights are gathered, or while a checkpoint is written. It goes on with as many processes, to the
same bits, or with another number, to rounding. A step is compiled on TensorFlow and JAX: there the
kill comes at some time after the beginning of the step. Prints a line for each, as JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

NUM_RANKS, NUM_EPOCHS, NUM_ROWS, BATCH_SIZE = 3, 4, 48, 12
PHASES = ("sum", "update", "gather", "write")
TIMEOUT = 300


def kill_soon(seconds: float) -> None:
    """Ends this process with SIGKILL, after seconds."""
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def kill_in(phase: str, step: int, seconds: float, trainer: Any) -> Any:
    """Prepares the kill in a phase of the first such step; returns a callback that counts steps."""
    import keras

    has_come = threading.Event()

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            if has_come.is_set():
                kill_soon(seconds)
            return original(*args, **kwargs)

        setattr(owner, name, called)

    class Count(keras.callbacks.Callback):
        def get_state(self) -> None:
            """Has no state to go on with."""

        def set_state(self, state: Any) -> None:
            pass

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if int(trainer.model.optimizer.iterations) >= step and not has_come.is_set():
                has_come.set()
                if phase != "write" and keras.backend.backend() != "torch":
                    kill_soon(seconds)

    if phase == "write":
        wrap(Path, "replace")
    elif keras.backend.backend() == "torch":
        cluster = trainer._cluster
        replicas = cluster.processes.replicas
        hooks = {
            "sum": (replicas, "sum_parts"),
            "update": (cluster.parts, "take"),
            "gather": (replicas, "share_parts"),
        }
        wrap(*hooks[phase])
    return Count()


def train(folder: Path, kill: dict[str, Any] | None) -> None:
    """Trains in this process, one of several or the only one; rank 0 saves the weights."""
    import keras

    from keras_deepseek.training import Trainer

    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(36, activation="tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(6),
        ]
    )
    random_numbers = np.random.default_rng(0)
    x = random_numbers.normal(size=(NUM_ROWS, 12)).astype("float32")
    y = random_numbers.normal(size=(NUM_ROWS, 6)).astype("float32")
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.AdamW(0.01),
        loss="mse",
        seed=1,
        gradient_clip=("global_norm", 1.0),
        checkpoint_dir=folder / "checkpoints",
        checkpoint_every=2,
        distributed_strategy="allreduce",
        shard_optimizer=True,
    )
    rank = int(os.environ.get("RANK", "0"))
    is_killed = kill is not None and rank == kill.pop("rank")
    callbacks = [kill_in(**kill, trainer=trainer)] if kill is not None and is_killed else []
    trainer.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=NUM_EPOCHS,
        verbose=0,
        callbacks=callbacks,
        resume=any((folder / "checkpoints").glob("*.checkpoint")),
    )
    if rank == 0:
        weights = {str(n): keras.ops.convert_to_numpy(w) for n, w in enumerate(model.weights)}
        np.savez(folder / "weights.npz", **weights)


def run(folder: Path, num_ranks: int, kill: dict[str, Any] | None = None) -> int:
    """Returns the exit status of a training of some processes."""
    arguments = [str(folder), "--kill", json.dumps(kill)]
    launch = ["-m", "keras_deepseek.cli", "launch", "--nproc", str(num_ranks)]
    launch += ["--grace-period", "2"]
    command = [sys.executable, *launch, __file__, *arguments]
    done = subprocess.run(command, timeout=TIMEOUT, capture_output=True, text=True, check=False)
    if done.returncode and kill is None:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    return done.returncode


def find_difference(folder: Path, other: Path) -> float:
    """Returns the largest difference of the weights of two trainings."""
    first, second = (np.load(path / "weights.npz") for path in (folder, other))
    return max(float(np.abs(first[name] - second[name]).max()) for name in first.files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", type=json.loads, default="0")
    arguments = parser.parse_args()
    if arguments.kill != 0:
        train(arguments.folder, arguments.kill)
        return 0
    chances = random.Random(arguments.seed)
    whole = arguments.folder / "whole"
    whole.mkdir(parents=True)
    if run(whole, NUM_RANKS):
        return 1
    num_wrong = 0
    for number in range(arguments.kills):
        folder = arguments.folder / str(number)
        folder.mkdir()
        kill = {
            "phase": PHASES[number % len(PHASES)],
            "rank": chances.randrange(NUM_RANKS),
            "step": chances.randrange(3, 12),
            "seconds": chances.choice([0.0, 0.001, 0.005, 0.02]),
        }
        num_ranks = chances.choice([NUM_RANKS, NUM_RANKS, 1, 2, 4])
        was_killed = run(folder, NUM_RANKS, kill) != 0
        goes_on = run(folder, num_ranks) == 0
        difference = find_difference(whole, folder) if goes_on else None
        most = 0.0 if num_ranks == NUM_RANKS else 1e-5
        is_right = was_killed and difference is not None and difference <= most
        num_wrong += not is_right
        result = {**kill, "goes on with": num_ranks, "killed": was_killed, "difference": difference}
        print(json.dumps(result | {"right": is_right}), flush=True)
    return num_wrong


if __name__ == "__main__":
    sys.exit(main())

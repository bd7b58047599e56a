"""A training whose state several processes divide, and save in files of their own.

    python tests/oracles/divided_state.py OUT CHECKPOINTS EPOCHS WAY [RANK SAVE PHASE]

trains alone, or as one of the processes that `keras-deepseek launch` has started. WAY is "slices"
or "weights" for the division of the optimizer's state, or "fsdp", on JAX alone. Each rank leaves
losses, weights, and what it has read of divided arrays in a file of OUT. The process RANK is killed
in its write SAVE, counted from 1: PHASE is "before", "within" or "after". CHECKPOINTS may name the
"{rank}", for folders that the processes do not share.
"""

import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.checkpoint import Checkpoint, OpenArchives
from keras_deepseek.backend import current
from keras_deepseek.training import Trainer, join_cluster, transformer_layout_map

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 16)).astype("float32")
Y = RNG.integers(0, 8, 64)
OPTIMIZERS: dict[str, Any] = {
    "slices": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.AdamW(0.01, use_ema=True)
    ),
    "weights": lambda: keras.optimizers.Adafactor(0.01),
    "fsdp": lambda: keras.optimizers.AdamW(0.01),
}
num_read = []
"""The numbers of the pieces that this process has read."""


def build() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(48, activation="tanh", name="first"),
        keras.layers.Dense(48, activation="tanh", name="second"),
        keras.layers.Dense(48, activation="tanh", name="third"),
        keras.layers.Dense(8, name="logits"),
    ]
    return keras.Sequential([keras.Input((16,)), *layers])


def lay_out() -> keras.distribution.ModelParallel:
    """Returns a distribution that divides all matrices among the devices of all processes."""
    mesh = keras.distribution.DeviceMesh((len(keras.distribution.list_devices()),), ["batch"])
    layout_map = transformer_layout_map(build, mesh, model_axis=None, data_axis="batch")
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch", auto_shard_dataset=False
    )


def be_killed(phase: str, save: int) -> None:
    """Has this process killed in a write of a checkpoint."""
    write, write_to = Checkpoint.write, Checkpoint._write_to
    number = [0]

    def end(when: str) -> None:
        if when == phase and number[0] == save:
            os.kill(os.getpid(), signal.SIGKILL)

    def count_and_write(checkpoint: Checkpoint, path: Path) -> None:
        number[0] += 1
        end("before")
        write(checkpoint, path)
        end("after")

    def write_half(checkpoint: Checkpoint, file: Any) -> None:
        write_to(checkpoint, file)
        if number[0] == save:
            file.truncate(file.tell() // 2)
            file.flush()
            end("within")

    Checkpoint.write = count_and_write  # type: ignore[method-assign]
    if phase == "within":
        Checkpoint._write_to = write_half  # type: ignore[method-assign]


def count_reads() -> None:
    read = OpenArchives.read

    @functools.wraps(read)
    def count(archives: OpenArchives, path: Path, name: str, dtype: str) -> Any:
        array = read(archives, path, name, dtype)
        num_read.append(array.size)
        return array

    OpenArchives.read = count  # type: ignore[method-assign]


def main() -> None:
    out, folder, epochs, way, *kill = sys.argv[1:]
    is_alone = "WORLD_SIZE" not in os.environ
    rank = 0 if is_alone else join_cluster().rank
    if kill and rank == int(kill[0]):
        be_killed(kill[2], int(kill[1]))
    count_reads()
    strategy = None if is_alone else lay_out() if way == "fsdp" else "allreduce"
    trainer = Trainer(
        build,
        optimizer=OPTIMIZERS[way](),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        distributed_strategy=strategy,
        shard_optimizer=not is_alone and way != "fsdp",
        guard="skip",
        checkpoint_dir=folder.format(rank=rank),
        checkpoint_every=3,
        keep_best=("loss", "min", 1),
        seed=3,
    )
    history = trainer.fit(X, Y, batch_size=16, epochs=int(epochs), verbose=0, resume=True).history
    read_whole = current().distribution.read_whole
    weights = [read_whole(weight.value) for weight in trainer.model.weights]
    np.savez(
        Path(out) / f"{rank}.npz",
        losses=history["loss"],
        weights=np.concatenate([weight.ravel() for weight in weights]),
        num_read=np.array(num_read),
    )


if __name__ == "__main__":
    main()

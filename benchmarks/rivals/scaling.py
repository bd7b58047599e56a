"""One of the processes of a training over links: rivals take turns, and rank 0 prints what it took.

Started by `scaling.py` in each namespace, with the setting as JSON. All ranks make each step
together, so that one of them can say how long it took; its link says how much it has sent.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from bert import EPSILON, Shape, build
from masked_text import pad, read_documents

from keras_deepseek.training import LowRank, Trainer, join_cluster

LENGTH = 32
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
_SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")

OURS, KERAS = "Trainer", "Keras"
DDP, DDP_BF16, DDP_BF16_4MB, POWER_SGD = (
    "DDP",
    "DDP, bf16 hook",
    "DDP, bf16 hook, 4 MB",
    "DDP, PowerSGD, rank 4",
)
ALONE = "no communication"


class Rows:
    """The rows of all workers for each step, of real masked text; each worker has its own.

    Args:
        num_workers: integer.
        rows_each: integer. Rows of a step that each worker has.
        num_steps: integer.
    """

    def __init__(self, num_workers: int, rows_each: int, num_steps: int) -> None:
        self.batch_size = num_workers * rows_each
        documents = read_documents(self.batch_size * num_steps, longest=LENGTH)
        self.x, self.y = pad(documents, LENGTH)

    def of(self, rank: int, num_workers: int) -> Iterator[tuple[dict[str, Any], Any]]:
        """Yields the batches of one worker."""
        for start in range(rank, len(self.y), self.batch_size):
            rows = slice(start, start - rank + self.batch_size, num_workers)
            yield {name: array[rows] for name, array in self.x.items()}, self.y[rows]


def make_model(setting: dict[str, Any]) -> keras.Model:
    keras.utils.set_random_seed(0)
    shape = Shape(
        num_layers=setting["num_layers"],
        hidden_dim=setting["hidden_dim"],
        num_heads=4,
        longest=64,
        dropout=0.0,
    )
    return build(shape, has_masked_head=False)


def train(setting: dict[str, Any], rows: Rows, **options: Any) -> Iterator[Any]:
    """Yields the loss of each step of `Trainer`, unread."""
    trainer = Trainer(
        lambda: make_model(setting),
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, WEIGHT_DECAY, epsilon=EPSILON),
        micro_batches=setting["parts"],
        seed=0,
        **options,
    )
    steps = trainer.steps(rows.x, rows.y, batch_size=rows.batch_size, shuffle=False)
    try:
        for step in steps:
            yield step.logs["loss"]
    finally:
        # The ranks of a training that is only closed still vote on whether to stop, and Keras's
        # strategy would replace the context of TensorFlow meanwhile.
        for _ in steps:
            pass


def train_alone(setting: dict[str, Any], rows: Rows, rank: int) -> Iterator[Any]:
    """Yields the loss of each step of a worker that hears of no other."""
    num_workers = setting["num_workers"]
    rank_rows = Rows.__new__(Rows)
    rank_rows.batch_size = rows.batch_size // num_workers
    rank_rows.x = {name: array[rank::num_workers] for name, array in rows.x.items()}
    rank_rows.y = rows.y[rank::num_workers]
    return train(setting, rank_rows)


def make_ways(setting: dict[str, Any], rows: Rows, rank: int) -> dict[str, Callable[[], Any]]:
    """Returns by name what begins a training and returns the losses of its steps."""
    together = {"distributed_strategy": "allreduce"}
    ways: dict[str, Callable[[], Any]] = {
        ALONE: lambda: train_alone(setting, rows, rank),
        OURS: lambda: train(setting, rows, **together),
    }
    if keras.backend.backend() != "torch":
        import scaling_keras

        ways |= scaling_keras.make_ways(lambda: make_model(setting), rows, rank, setting)
    kinds = {
        "bfloat16": "bfloat16",
        "float16": "float16",
        "rank 4": LowRank(4),
        "rank 8": LowRank(),
    }
    for name, kind in kinds.items():
        ways[f"{OURS}, {name}"] = lambda kind=kind: train(
            setting, rows, gradient_compression=kind, **together
        )
    if keras.backend.backend() == "torch":
        import scaling_torch

        ways |= scaling_torch.make_ways(lambda: make_model(setting), rows, rank, setting)
    return ways


def measure(begin: Callable[[], Iterator[Any]], warm_up: int, num_steps: int) -> dict[str, Any]:
    """Returns what a step takes and sends: seconds, those of the processor, bytes."""
    losses = begin()
    first = [next(losses) for _ in range(warm_up)]
    float(np.asarray(first[-1]))  # It waits for the step.
    sent, cpu, start = int(_SENT.read_text()), time.process_time(), time.perf_counter()
    last = [next(losses) for _ in range(num_steps)]
    loss = float(np.asarray(last[-1]))
    seconds = time.perf_counter() - start
    figures = {
        "seconds": seconds / num_steps,
        "cpu_seconds": (time.process_time() - cpu) / num_steps,
        "bytes": (int(_SENT.read_text()) - sent) / num_steps,
        "loss": loss,
    }
    if hasattr(losses, "close"):
        losses.close()
    gc.collect()
    return figures


def main() -> int:
    setting = json.loads(sys.argv[1])
    cluster = join_cluster()
    num_steps = setting["warm_up"] + setting["num_steps"]
    rows = Rows(cluster.world_size, setting["rows_each"], num_steps + 1)
    ways = make_ways(setting, rows, cluster.rank)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in setting["ways"]}
    for _ in range(setting["rounds"]):
        for name in setting["ways"]:
            figures = measure(ways[name], setting["warm_up"], setting["num_steps"])
            results[name].append(figures)
            if cluster.rank == 0 and os.environ.get("SCALING_SHOWS"):
                print(name, figures, file=sys.stderr, flush=True)
    if cluster.rank == 0:
        num_parameters = make_model(setting).count_params()
        print(json.dumps({"results": results, "num_parameters": num_parameters}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One of the processes of a training with sharded state: rivals take turns, rank 0 prints.

Started by `sharded_optimizer.py` in each namespace, with the setting as JSON.
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
from bert import EPSILON
from peak_memory import read_status, restart_peak
from scaling import LEARNING_RATE, WEIGHT_DECAY, Rows, make_model

from keras_deepseek.training import Trainer, join_cluster

_SENT = Path("/sys/class/net/eth0/statistics/tx_bytes")

Way = Callable[[], tuple[Iterator[Any], Callable[[], int]]]
"""Function that begins a training. It returns the losses of its steps, and a function that returns
the bytes of the optimizer's state in this process."""


def train(setting: dict[str, Any], rows: Rows, **options: Any) -> Any:
    """Returns a way of `Trainer`."""
    keras.utils.set_random_seed(0)
    trainer = Trainer(
        make_model(setting),
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, WEIGHT_DECAY, epsilon=EPSILON),
        seed=0,
        distributed_strategy="allreduce",
        precision=setting["precision"],
        **options,
    )

    def step() -> Iterator[Any]:
        steps = trainer.steps(rows.x, rows.y, batch_size=rows.batch_size, shuffle=False)
        for result in steps:
            yield result.logs["loss"]

    return step(), lambda: sum(map(_count_bytes, trainer.model.optimizer.variables))


def _count_bytes(variable: keras.Variable) -> int:
    value = variable.value
    if keras.backend.backend() == "jax":
        return sum(shard.data.nbytes for shard in value.addressable_shards)
    return int(np.prod(variable.shape)) * 4


def measure(begin: Way, warm_up: int, num_steps: int) -> dict[str, Any]:
    """Returns what a step takes, sends and holds: seconds, those of the processor, bytes."""
    gc.collect()
    before = read_status("VmRSS")
    losses, count_state = begin()
    first = [next(losses) for _ in range(warm_up)]
    float(np.asarray(first[-1]))  # It waits for the step.
    restart_peak()
    sent, cpu, start = int(_SENT.read_text()), time.process_time(), time.perf_counter()
    last = [next(losses) for _ in range(num_steps)]
    loss = float(np.asarray(last[-1]))
    seconds = time.perf_counter() - start
    figures = {
        "seconds": seconds / num_steps,
        "cpu_seconds": (time.process_time() - cpu) / num_steps,
        "bytes": (int(_SENT.read_text()) - sent) / num_steps,
        "state_bytes": count_state(),
        "peak_megabytes": read_status("VmHWM") - before,
        "loss": loss,
    }
    for _ in losses:  # All ranks end a training together.
        pass
    gc.collect()
    return figures


def main() -> int:
    setting = json.loads(sys.argv[1])
    cluster = join_cluster()
    num_steps = setting["warm_up"] + setting["num_steps"]
    rows = Rows(cluster.world_size, setting["rows_each"], num_steps + 1)
    ways: dict[str, Way] = {
        "sharded": lambda: train(setting, rows, shard_optimizer=True),
        "all-reduce": lambda: train(setting, rows),
    }
    if keras.backend.backend() == "torch":
        import sharded_optimizer_torch

        ways |= sharded_optimizer_torch.make_ways(setting, rows, cluster.rank)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in setting["ways"]}
    for _ in range(setting["rounds"]):
        for name in setting["ways"]:
            results[name].append(measure(ways[name], setting["warm_up"], setting["num_steps"]))
            if cluster.rank == 0 and os.environ.get("SCALING_SHOWS"):
                print(name, results[name][-1], file=sys.stderr, flush=True)
    if cluster.rank == 0:
        num_weights = make_model(setting).count_params()
        print(json.dumps({"results": results, "num_weights": num_weights}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

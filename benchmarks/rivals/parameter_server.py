"""A training of a small encoder by several workers, of which one may be slow: SETTING, as JSON.

Run by `benchmarks/parameter_server.py`, as the chief of a parameter server or as a rank of an
all-reduce. Prints what came of it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_deepseek.training import ParameterServer, Trainer, join_cluster

SETTING = json.loads(sys.argv[1])
IS_SERVED = SETTING["way"] == "parameter server"
STRATEGY: Any = "allreduce"
if IS_SERVED:
    STRATEGY = ParameterServer(SETTING["num_workers"], staleness_bound=SETTING["staleness_bound"])
CLUSTER = join_cluster(STRATEGY)

import keras  # noqa: E402 - TensorFlow and JAX have joined.
from bert import EPSILON, Shape, build  # noqa: E402
from masked_text import pack, read_documents, split  # noqa: E402

SHAPE = Shape(num_layers=2, hidden_dim=64, num_heads=4, vocabulary_size=4_700, longest=48)
PERIOD = 0.04
"""Seconds of a turn of a slow worker: it runs in the first part and is stopped in the rest."""


class Clock(keras.callbacks.Callback):
    """Notes time and loss after each epoch but the first, in which everything compiles.

    Args:
        unseen: Inputs, targets and sample weights for the loss.
        find_slow: Function that returns the number of the process to slow down, or `None`.
    """

    def __init__(self, unseen: Any, find_slow: Callable[[], int] | None) -> None:
        super().__init__()
        self.unseen, self.find_slow = unseen, find_slow
        self.seconds, self.num_updates, self.bytes = 0.0, 0, 0
        self.curve: list[list[float]] = []
        self.slowing: subprocess.Popen[bytes] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1 and self.find_slow is not None:
            # Another process: TensorFlow keeps Python's lock while it tells a stopped worker.
            arguments = [str(self.find_slow()), str(PERIOD), str(1.0 / SETTING["slowness"])]
            script = Path(__file__).with_name("slow_down.py")
            self.slowing = subprocess.Popen([sys.executable, str(script), *arguments])
        self.began, self.bytes_before = time.monotonic(), read_loopback()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.num_updates += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.num_updates = 0
            return
        self.seconds += time.monotonic() - self.began
        self.bytes += read_loopback() - self.bytes_before
        loss = float(self.model.evaluate(*self.unseen, verbose=0))
        self.curve.append([self.seconds, self.num_updates, loss])

    def stop(self) -> None:
        if self.slowing is not None:
            self.slowing.terminate()
            self.slowing.wait()


def read_loopback() -> int:
    """Returns the bytes that have gone over the loopback device."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    (words,) = (line.split() for line in lines if line.strip().startswith("lo:"))
    return int(words[1])


def find_worker(trainer: Trainer) -> int:
    """Returns the number of a worker's process."""
    engine: Any = vars(trainer)["_cluster"].chief.engine
    if keras.backend.backend() == "tensorflow":
        return int(engine.tasks.process_ids("worker")[0])
    import ray

    return int(ray.get(engine.actors.workers[0].__ray_call__.remote(lambda _: os.getpid())))


def time_calls(trainer: Trainer) -> float | None:
    """Returns the seconds of a call of Ray's that does nothing, there and back; a median."""
    if not IS_SERVED or keras.backend.backend() == "tensorflow":
        return None
    import ray

    server, seconds = vars(trainer)["_cluster"].chief.engine.actors.servers[0], []
    for _ in range(200):
        began = time.perf_counter()
        ray.get(server.life.remote())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    number_file = Path(SETTING["folder"]) / "slow"
    if not IS_SERVED and CLUSTER.rank == SETTING["num_workers"] - 1:
        number_file.write_text(str(os.getpid()), encoding="ascii")
    training_documents, unseen = split(
        read_documents(SETTING["num_documents"], longest=SHAPE.longest), 256
    )
    trainer = Trainer(
        lambda: build(SHAPE, has_masked_head=True),
        optimizer=keras.optimizers.AdamW(SETTING["rate"], weight_decay=0.0, epsilon=EPSILON),
        gradient_clip=("global_norm", 1.0),
        distributed_strategy=STRATEGY,
        seed=SETTING["seed"],
    )
    find_slow = None
    if SETTING["slowness"] > 1 and CLUSTER.rank == 0:
        find_slow = (
            (lambda: find_worker(trainer))
            if IS_SERVED
            else (lambda: int(number_file.read_text(encoding="ascii")))
        )
    clock = Clock(pack(unseen), find_slow)
    calls: list[float | None] = []

    class TimeCalls(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 0:
                calls.append(time_calls(trainer))

    rows = SETTING["rows"] * (1 if IS_SERVED else SETTING["num_workers"])
    try:
        trainer.fit(
            *pack(training_documents, 0),
            batch_size=rows,
            epochs=SETTING["epochs"],
            callbacks=[TimeCalls(), clock],
            verbose=0,
        )
    finally:
        clock.stop()
    if CLUSTER.rank == 0:
        result = {"curve": clock.curve, "bytes": clock.bytes, "call": calls[0]}
        print("FOUND " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

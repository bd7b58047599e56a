"""Ways to record a training, which take turns. Prints the milliseconds of a step by way and round.

Started by `studio.py`. A batch comes after a wait, as if an accelerator computed the step.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek.callbacks import RunRecorder
from keras_deepseek.training import Trainer

BATCH_SIZE, DIM, NUM_CLASSES = 32, 64, 10
OPTIONS: dict[str, Any] = {
    "optimizer": "adam",
    "loss": "sparse_categorical_crossentropy",
    "metrics": ["accuracy"],
}


class Timer(keras.callbacks.Callback):
    """Measures the last epoch of a training."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu = self.wall = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begun = time.process_time(), time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.cpu = time.process_time() - self._begun[0]
        self.wall = time.perf_counter() - self._begun[1]


def main() -> None:
    setting = json.loads(sys.argv[1])
    rounds, num_steps = setting["rounds"], setting["num_steps"]
    timer = Timer()
    ways = make_ways(Path(tempfile.mkdtemp()), timer)
    times: dict[str, Any] = {name: {"cpu": [], "wall": []} for name in ways}
    for index in range(rounds + 1):
        turns = list(ways.items())
        for name, fit in reversed(turns) if index % 2 else turns:
            fit(_batches(setting["wait"]), steps_per_epoch=num_steps, epochs=2, verbose=0)
            if index:  # In the first round, steps are compiled.
                times[name]["cpu"].append(1e3 * timer.cpu / num_steps)
                times[name]["wall"].append(1e3 * timer.wall / num_steps)
    print(json.dumps(times))


def make_ways(folder: Path, timer: Timer) -> dict[str, Callable[..., Any]]:
    """Returns functions that train, each with what it records."""
    model = build()
    model.compile(**OPTIONS)
    bare, recorded = (Trainer(build(), **OPTIONS, callbacks=[timer]) for _ in range(2))
    recorded.record_run(folder / "trainer.sqlite")
    recorder = RunRecorder(folder / "fit.sqlite")

    def fit_by_tensorboard(*arguments: Any, **options: Any) -> None:
        board = keras.callbacks.TensorBoard(folder / "board", update_freq=1, write_graph=False)
        model.fit(*arguments, **options, callbacks=[timer, board])

    ways = {
        "model.fit": lambda *arguments, **more: model.fit(*arguments, **more, callbacks=[timer]),
        "RunRecorder": lambda *arguments, **more: model.fit(
            *arguments, **more, callbacks=[timer, recorder]
        ),
        "Trainer": bare.fit,
        "Trainer, recorded": recorded.fit,
    }
    return {**ways, "TensorBoard": fit_by_tensorboard} if find_spec("tensorboard") else ways


def build() -> keras.Model:
    layers = keras.layers
    hidden = [layers.Dense(DIM, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((DIM,)), *hidden, layers.Dense(NUM_CLASSES)])


def _batches(wait: float) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH_SIZE, DIM)).astype("float32")
    y = rng.integers(0, NUM_CLASSES, BATCH_SIZE).astype("int32")
    while True:
        time.sleep(wait)
        yield x, y


if __name__ == "__main__":
    main()

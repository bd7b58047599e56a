"""Keras's own data parallelism over processes: its `fit`, stopped after each step to be measured.

On TensorFlow under `MultiWorkerMirroredStrategy`, mended where `fit` fails under it; on JAX under
`keras.distribution.DataParallel`.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from scaling import EPSILON, KERAS, LEARNING_RATE, WEIGHT_DECAY, Rows


def make_ways(
    make_model: Callable[[], keras.Model], rows: Rows, rank: int, setting: dict[str, Any]
) -> dict[str, Callable[[], Iterator[Any]]]:
    """Returns by name what begins a training and returns the losses of its steps."""
    fit = {"tensorflow": _fit_tensorflow, "jax": _fit_jax}[keras.backend.backend()]

    def begin() -> Iterator[Any]:
        batches = list(rows.of(rank, setting["num_workers"]))
        x = {
            name: np.concatenate([inputs[name] for inputs, _ in batches]) for name in batches[0][0]
        }
        y = np.concatenate([labels for _, labels in batches])
        return _steps(lambda tell: fit(make_model, x, y, setting["rows_each"], tell))

    return {KERAS: begin}


class _Tell(keras.callbacks.Callback):
    """Hands on the loss of each step, and waits until the next one is asked for."""

    def __init__(self, losses: Any, requests: Any) -> None:
        super().__init__()
        self.losses, self.requests = losses, requests

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.put(logs["loss"])
        if self.requests.get() == "stop":
            self.model.stop_training = True


def _steps(fit: Callable[[keras.callbacks.Callback], None]) -> Iterator[Any]:
    """Yields the losses of a `fit` that runs beside, in a thread of its own."""
    losses: Any = queue.Queue()
    requests: Any = queue.Queue()

    def run() -> None:
        try:
            fit(_Tell(losses, requests))
        except Exception as error:  # noqa: BLE001 - it is raised where the losses are read.
            losses.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            loss = losses.get()
            if isinstance(loss, Exception):
                raise loss
            yield loss
            requests.put("go on")
    finally:
        requests.put("stop")
        thread.join()


def _compile(model: keras.Model) -> None:
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, WEIGHT_DECAY, epsilon=EPSILON)
    model.compile(optimizer=optimizer, loss=model.loss)


def _fit_jax(
    make_model: Callable[[], keras.Model], x: Any, y: Any, rows_each: int, tell: Any
) -> None:
    # Of this thread alone.
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    model = make_model()
    _compile(model)
    model.fit(x, y, batch_size=rows_each, shuffle=False, verbose=0, callbacks=[tell])


def _fit_tensorflow(
    make_model: Callable[[], keras.Model], x: Any, y: Any, rows_each: int, tell: Any
) -> None:
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # Of `TF_CONFIG`.

    class Mended(keras.Model):
        """Takes the steps of `fit`, whose logs need an axis to take the mean over."""

        def __init__(self, inner: keras.Model) -> None:
            super().__init__()
            self.inner = inner

        def call(self, inputs: Any, training: bool = False) -> Any:
            return self.inner(inputs, training=training)

        def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
            """Does nothing: the inner model is built."""

        def train_step(self, data: Any) -> Any:
            logs = super().train_step(data)
            return tf.nest.map_structure(lambda log: tf.reshape(log, (1,)), logs)

    def read(_: Any) -> Any:
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(rows_each).prefetch(2)

    with strategy.scope():
        inner = make_model()
        model = Mended(inner)
        model.loss = inner.loss
        _compile(model)
        model.optimizer.build(model.trainable_variables)
        data = strategy.distribute_datasets_from_function(read)
    model.fit(data, steps_per_epoch=len(y) // rows_each, verbose=0, callbacks=[tell])

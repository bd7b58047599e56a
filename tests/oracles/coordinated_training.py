"""Trainings by a parameter server of TensorFlow's, beside one process; prints what came of them.

    python tests/oracles/coordinated_training.py FOLDER first|further

TensorFlow connects to workers and servers before it computes anything, so that this is a process of
its own. The last of the first trainings loses its server.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from keras_deepseek.training import ParameterServer, Trainer, join_cluster

SERVERS: dict[str, Any] = {"num_workers": 2, "num_servers": 2}

if __name__ == "__main__":
    join_cluster(ParameterServer(**SERVERS))

import keras  # noqa: E402 - TensorFlow has connected.
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from keras_deepseek.errors import PeerLostError  # noqa: E402
from tests.oracles.served_models import (  # noqa: E402
    build,
    build_encoder,
    make_optimizer,
    masked_words,
    weights_of,
)

FOLDER = Path(sys.argv[1])
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = (IMAGES / 16).astype("float32")


def make_trainer(name: str, bound: int | None, model: Any = build, **arguments: Any) -> Trainer:
    """Returns a trainer; without a bound, of one process."""
    strategy = None if bound is None else ParameterServer(**SERVERS, staleness_bound=bound)
    return Trainer(
        model,
        **{
            "optimizer": keras.optimizers.Adam(2e-3),
            "loss": LOSS,
            "seed": 3,
            "checkpoint_dir": FOLDER / f"{name} {bound}",  # In the same order of the data.
            **arguments,
        },
        distributed_strategy=strategy,
    )


class Kill(keras.callbacks.Callback):
    """Kills a process after a batch of the first epoch, with SIGKILL."""

    def __init__(self, trainer: Trainer, kind: str, at: int) -> None:
        super().__init__()
        self.trainer, self.kind, self.at, self.number = trainer, kind, at, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.at and not self.number:
            self.number = self.trainer._cluster.chief.engine.tasks.process_ids(self.kind)[0]
            os.kill(self.number, signal.SIGKILL)


def compare(name: str, model: Any = build, data: Any = None, **arguments: Any) -> dict[str, Any]:
    """Returns how far a training with a bound of 0 is from that of one process."""
    data = data or {
        "x": IMAGES[:300],
        "y": LABELS[:300],
        "batch_size": 32,
        "validation_data": (IMAGES[300:400], LABELS[300:400]),
    }
    data.update(epochs=2, verbose=0)
    trainers = [make_trainer(name, bound, model, **arguments) for bound in (None, 0)]
    alone, served = (trainer.fit(**data).history for trainer in trainers)
    assert set(alone) == set(served)
    logs = [np.abs(np.subtract(alone[name], served[name])).max() for name in alone]
    alone_weights, served_weights = (weights_of(trainer.model) for trainer in trainers)
    weights = [np.abs(a - b).max() for a, b in zip(alone_weights, served_weights, strict=True)]
    steps = [int(trainer.model.optimizer.iterations) for trainer in trainers]
    return {"logs": float(max(logs)), "weights": float(max(weights)), "steps": steps}


def build_regularized(dropout: float = 0.0) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu", kernel_regularizer="l2"),
            keras.layers.Dropout(dropout),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(10),
        ]
    )


def repeat_with_dropout() -> dict[str, Any]:
    """Returns the losses of a training with dropout, and of the same once more."""
    losses = []
    for name in ("one", "other"):
        trainer = make_trainer(name, 0, lambda: build_regularized(0.5))
        losses.append(trainer.fit(IMAGES[:96], LABELS[:96], epochs=2, verbose=0).history["loss"])
    return {"losses": losses}


class Distillation(Trainer):
    """Learns what a model of another training says."""

    def train_step(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        outputs = self.model(x, training=True)
        taught = keras.ops.softmax(self.teacher(x))  # type: ignore[attr-defined]
        soft = keras.ops.mean(keras.losses.kl_divergence(taught, keras.ops.softmax(outputs)))
        return {"loss": self.model.compute_loss(x, y, outputs, sample_weight) + soft, "soft": soft}


def distil() -> dict[str, Any]:
    """Returns how far a distillation is from that of one process."""
    soft_losses = []
    for bound in (None, 0):
        strategy = None if bound is None else ParameterServer(**SERVERS, staleness_bound=0)
        trainer = Distillation(
            build,
            optimizer="sgd",
            loss=LOSS,
            seed=5,
            checkpoint_dir=FOLDER / f"distil {bound}",
            distributed_strategy=strategy,
        )
        keras.utils.set_random_seed(1)
        trainer.teacher = build()  # type: ignore[attr-defined]
        history = trainer.fit(IMAGES[:160], LABELS[:160], batch_size=32, epochs=2, verbose=0)
        soft_losses.append(history.history["soft"])
    return {"logs": float(np.abs(np.subtract(*soft_losses)).max())}


def compare_sparse() -> dict[str, Any]:
    """Returns how far a training is whose batches touch few rows of an embedding."""
    x, y, weights = (array[:80] for array in masked_words())
    data = {"x": x, "y": y, "sample_weight": weights, "batch_size": 8}
    return compare("sparse", build_encoder, data)


def lose_a_worker() -> dict[str, Any]:
    """Returns the losses of one process and of a training whose worker dies, and its steps."""
    data = {"x": IMAGES, "y": LABELS, "batch_size": 32, "epochs": 4, "verbose": 0}
    losses, steps, batches = [], 0, []
    for bound in (None, 8):
        trainer = make_trainer("worker", bound, optimizer=make_optimizer(4 * 57))
        record = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: batches.append(batch)
        )
        callbacks = [] if bound is None else [Kill(trainer, "worker", at=5), record]
        trainer.fit(**data, callbacks=callbacks)
        losses.append(float(trainer.evaluate(IMAGES, LABELS, verbose=0)))
        steps = int(trainer.model.optimizer.iterations)
    return {"losses": losses, "steps": steps, "in_order": batches == list(range(57)) * 4}


def pretrain() -> dict[str, Any]:
    """Returns losses of a model of BERT's shape, by one process and by two workers."""
    x, y, weights = masked_words()
    training_data, held_out = (
        {"x": x[part], "y": y[part], "sample_weight": weights[part]}
        for part in (slice(640), slice(640, None))
    )
    losses = []
    for bound in (None, 4):
        trainer = make_trainer(
            "encoder",
            bound,
            build_encoder,
            optimizer=make_optimizer(120),
            gradient_clip=("global_norm", 1.0),
        )
        trainer.fit(**training_data, batch_size=32, epochs=6, verbose=0)
        losses.append(
            [float(trainer.evaluate(**data, verbose=0)) for data in (training_data, held_out)]
        )
    return {"losses": losses}


def stop_and_go_on() -> dict[str, Any]:
    """Returns how far a training that SIGTERM has ended, and that went on, is from one process."""
    data = {"x": IMAGES[:300], "y": LABELS[:300], "batch_size": 32, "epochs": 2, "verbose": 0}
    expected = make_trainer("stop", None).fit(**data).history
    number = 0

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            nonlocal number
            number += 1
            if number == 13:
                os.kill(os.getpid(), signal.SIGTERM)

    code: Any = "not ended"
    try:
        make_trainer("stop", 0, checkpoint_every=4).fit(**data, callbacks=Stop())
    except SystemExit as ended:
        code = ended.code
    history = make_trainer("stop", 0, checkpoint_every=4).fit(**data, resume=True).history
    differences = [np.abs(np.subtract(expected[name], history[name])).max() for name in expected]
    return {"code": code, "stopped_after": number, "logs": float(max(differences))}


def read_error(labels: Any, **arguments: Any) -> list[str]:
    """Returns the type of a training's error, and its text with the notes."""
    trainer = make_trainer("error", 4, checkpoint_dir=None, **arguments)
    try:
        trainer.fit(IMAGES, labels, batch_size=32, verbose=0)
    except Exception as error:  # noqa: BLE001 - it is told on.
        notes = getattr(error, "__notes__", [])
        return [type(error).__name__, "\n".join([str(error), *notes])]
    return ["", ""]


def lose_a_server() -> list[str]:
    """Returns what a training says whose server dies."""
    trainer = make_trainer("server", 4)
    try:
        trainer.fit(
            IMAGES, LABELS, batch_size=32, epochs=9, verbose=0, callbacks=Kill(trainer, "ps", at=5)
        )
    except PeerLostError as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def train_first() -> dict[str, Any]:
    """Returns what came of a training, and of those in which something fails."""
    return {
        "plain": compare("plain", metrics=["accuracy"]),
        "worker": lose_a_worker(),
        "stopped": stop_and_go_on(),
        "bad label": read_error(LABELS + 1000),
        "after it": compare("again", data={"x": IMAGES[:64], "y": LABELS[:64]}),
        "server": lose_a_server(),
    }


def train_further() -> dict[str, Any]:
    """Returns what came of trainings with other steps."""
    return {
        "parts": compare("parts", micro_batches=4, gradient_clip=("global_norm", 0.5)),
        "adaptive": compare("adaptive", gradient_clip=("adaptive", 0.01)),
        "half": compare("half", build_regularized, precision="bfloat16", remat=["dense*"]),
        "sparse": compare_sparse(),
        "dropout": repeat_with_dropout(),
        "distil": distil(),
        "encoder": pretrain(),
    }


def main() -> None:
    print(json.dumps(train_first() if sys.argv[2] == "first" else train_further()))


if __name__ == "__main__":
    main()

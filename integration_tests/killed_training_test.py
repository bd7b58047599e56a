"""A training whose process is killed 20 times, at random steps, ends as one that was left alone."""

import random
import signal
import subprocess
from pathlib import Path

import pytest

KILLS = 20
MOST_STEPS = 6
"""After at most so many steps of a process it is killed."""

TRAINING = """
import hashlib, json, sys
import keras
import numpy as np
from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.training import Trainer

images = np.random.default_rng(0).random((200, 8, 8, 1), "float32")
labels = (images.mean(axis=(1, 2, 3)) > 0.5).astype("int32")


class Handshake(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)
        sys.stdin.readline()


def build():
    return keras.Sequential([
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(2),
    ])


def schedule(step, total_steps, initial_lr, final_lr):
    return final_lr * (1 - step / total_steps)


stateful = [
    keras.callbacks.EarlyStopping(min_delta=0.001, patience=50, restore_best_weights=True),
    keras.callbacks.SwapEMAWeights(),
    keras.callbacks.ModelCheckpoint(sys.argv[1] + ".keras", save_best_only=True),
]
trainer = Trainer(
    build,
    optimizer=keras.optimizers.AdamW(use_ema=True, ema_momentum=0.9),
    micro_batches=2,
    gradient_clip=("global_norm", 1.0),
    guard="skip",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    precision="float16",
    checkpoint_dir=sys.argv[1],
    checkpoint_every=3,
    keep_last=3,
    keep_best=("val_loss", "min", 2),
    seed=2026,
    run_record=sys.argv[1] + ".sqlite",
    callbacks=[
        LRScheduler(func=schedule, total_steps=70, final_lr=0.01),
        *stateful,
        Handshake(),
    ],
)
history = trainer.fit(
    images, labels, batch_size=16, epochs=13, validation_split=0.2, verbose=0, resume=True
).history
state = [
    {name: value for name, value in vars(each).items() if isinstance(value, (int, float))}
    for each in stateful
]
digest = hashlib.sha256(json.dumps([history, state]).encode())
for variable in trainer.model.variables + trainer.model.optimizer.variables:
    digest.update(keras.ops.convert_to_numpy(variable.value).tobytes())
print("ended", digest.hexdigest(), flush=True)
"""


def run_training(python, folder, environment, end=None, steps=0):
    """Runs the training to its end, or to an end in the step after so many.

    Returns its last line, its exit code and the number of steps that it was let make.
    """
    steps_run = 0
    log = folder.with_suffix(".log")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [str(python), "-c", TRAINING, str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        line = process.stdout.readline()
        while line == "step\n":
            steps_run += 1
            process.stdin.write("\n")
            process.stdin.flush()  # And while the process goes on:
            if end is not None and steps_run == steps:
                process.send_signal(end)
                process.stdin.close()
                break
            line = process.stdout.readline()
        output = process.stdout.read()
    assert line, log.read_text()
    return (line + output).splitlines()[-1], process.returncode, steps_run


@pytest.mark.parametrize(
    ("backend", "extras"),
    [("tensorflow", "onnx,serving,tensorflow"), ("jax", "jax"), ("torch", "torch")],
)
def test_killed_again_and_again_it_ends_with_the_same_numbers(install, tmp_path, backend, extras):
    installed = install(extras)
    environment = {**installed.environment, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    kill_and_compare(installed.programs / "python", environment, tmp_path)


def kill_and_compare(python: Path, environment: dict[str, str], folder: Path) -> None:
    """Asserts that a training that is killed ends as one that is not."""
    expected, code, total = run_training(python, folder / "left_alone", environment)
    assert (expected[:6], code, total) == ("ended ", 0, 130)
    chance = random.Random(7)
    steps_made = 0
    for _ in range(KILLS):
        end = chance.choice([signal.SIGTERM, signal.SIGKILL])
        steps = chance.randint(1, MOST_STEPS)
        line, code, steps_run = run_training(python, folder / "killed", environment, end, steps)
        assert (line, steps_run) == ("step", steps)
        assert code == (0 if end == signal.SIGTERM else -signal.SIGKILL)
        steps_made += steps_run
    line, code, steps_run = run_training(python, folder / "killed", environment)
    assert (line, code) == (expected, 0)
    assert steps_made + steps_run > total  # SIGKILL cost some steps, which were made again.

"""
Title: Train in several processes, kill one, and resume
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: A script trains in two processes, loses one, and still ends with the same weights.
Time: 2 minutes on two cores
Install: "keras_deepseek[pictures]" scikit-learn
"""

"""
A training that takes days meets a crash, a lost machine or a pre-empted node. Here you see one: two
processes train a network together, one of them is killed, and the launcher starts both again. They
resume from the last checkpoint. At the end the weights are, to the bit, those of a training that
nobody disturbed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek.artifacts import RunRecord

folder = Path(tempfile.mkdtemp(prefix="processes_"))
script = folder / "train.py"

"""
## The script

Each process runs the whole script. `Trainer` does the rest under the launcher: a process reads only
its rows, gradients are summed over the processes before the update, and rank 0 writes the
checkpoints and the run record. The batch of 64 is that of both processes together.

Nothing in the script is about resuming but `resume=True`. Nothing is about processes but the line
that kills one: rank 1, after step 60, in the first attempt only.
"""

script.write_text("""
import os, signal, sys

import keras
from sklearn.datasets import load_digits

from keras_deepseek.training import Trainer

folder, is_disturbed = sys.argv[1], sys.argv[2:] == ["disturbed"]
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")


def build():
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((64,)), *layers])


trainer = Trainer(
    build,
    optimizer=keras.optimizers.Adam(3e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    checkpoint_dir=f"{folder}/checkpoints",
    checkpoint_every=25,
    seed=0,
)
trainer.record_run(f"{folder}/run.sqlite")


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs):
        step = 29 * self.epoch + batch + 1
        is_first_attempt = os.environ["KERAS_DEEPSEEK_RESTART"] == "0"
        if is_disturbed and is_first_attempt and trainer.cluster.rank == 1 and step == 60:
            os.kill(os.getpid(), signal.SIGKILL)


trainer.fit(images, labels, 64, epochs=5, verbose=2, callbacks=[Kill()], resume=True)
if trainer.cluster.rank == 0:
    trainer.model.save(f"{folder}/digits.keras")
""")

"""
## Launch it

`keras-deepseek launch --nproc 2 train.py` starts the script twice on this machine. With several
machines, the same command runs on each, with `--nnodes`, `--rank` and `--coordinator`.
`--max-restarts` says how often all processes are started again after a failure.
"""


def launch(name, *arguments):
    """Runs the script in two processes, and returns the folder with what they wrote."""
    (folder / name).mkdir()
    options = ["--nproc", "2", "--max-restarts", "1", "--backend", keras.backend.backend()]
    command = [sys.executable, "-m", "keras_deepseek", "launch", *options]
    done = subprocess.run(
        [*command, str(script), str(folder / name), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    print(*done.stdout.splitlines()[-3:], *errors, sep="\n")  # The launcher's own lines.
    assert done.returncode == 0, done.stderr
    return folder / name


calm = launch("calm")

"""
## Kill one

The launcher reports which process failed and how it ended, and ends the other one: it would wait
for its partner's gradients for ever. The second attempt begins at the newest checkpoint, that of
step 50.
"""

disturbed = launch("disturbed", "disturbed")

"""
## Compare

The run record forgets the steps that were lost, so that no step counts twice. Dropout and the order
of the rows continue where they stopped, hence equal weights.
"""

models = [keras.saving.load_model(run_folder / "digits.keras") for run_folder in (calm, disturbed)]
pairs = zip(*(model.get_weights() for model in models), strict=True)
is_equal = all(
    np.array_equal(calm_weight, disturbed_weight) for calm_weight, disturbed_weight in pairs
)
curves = {}
for run_folder in (calm, disturbed):
    with RunRecord(run_folder / "run.sqlite", read_only=True) as run:
        curves[run_folder.name] = np.array(run.scalars("step_loss"))

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
axis.plot(*curves["calm"].T, linewidth=5, alpha=0.3, label="not disturbed")
axis.plot(*curves["disturbed"].T, label="killed after step 60")
axis.axvline(50, color="grey", linestyle=":", label="the checkpoint")
axis.axvline(60, color="tab:red", linestyle=":", label="the kill")
axis.set(xlabel="step", ylabel="loss of the batch")
axis.legend()
figure.savefig("processes.png")
print(f"{keras.backend.backend()}: equal weights: {is_equal}, see {folder}")
assert is_equal
assert len(curves["disturbed"]) == len(np.unique(curves["disturbed"][:, 0])) == 145
assert np.array_equal(curves["calm"], curves["disturbed"])

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import MetricsLog
from keras_deepseek.errors import InvalidInputError

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")


def fit(*callbacks, **options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    options = {"batch_size": 4, "epochs": 2, "verbose": 0, **options}
    return model.fit(X, Y, callbacks=list(callbacks), **options).history


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_steps_and_epochs_are_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    history = fit(MetricsLog(path), validation_data=(X, Y), validation_freq=2)
    rows = read(path)
    steps = ["step", "step", "step", "epoch"] * 2
    assert [row["kind"] for row in rows] == steps
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [int(row["epoch"]) for row in rows] == [0] * 4 + [1] * 4
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [float(row["loss"]) for row in epochs] == history["loss"]
    assert float(epochs[1]["val_loss"]) == history["val_loss"][0]


def test_epochs_alone(tmp_path):
    fit(MetricsLog(tmp_path / "log.jsonl", every=0))
    assert [row["step"] for row in read(tmp_path / "log.jsonl")] == [3, 6]


def test_an_earlier_run_is_refused_or_gone_on_with(tmp_path):
    path = tmp_path / "log.jsonl"
    fit(MetricsLog(path))
    with pytest.raises(InvalidInputError, match="holds an earlier run"):
        fit(MetricsLog(path))
    fit(MetricsLog(path, resume=True), epochs=1)
    assert [int(row["step"]) for row in read(path)] == [1, 2, 3, 3]


def test_another_ending_is_refused_at_once():
    with pytest.raises(InvalidInputError, match=r"ends in \.jsonl"):
        MetricsLog("log.txt")


SCRIPT = """
import os, signal, sys
import keras, numpy as np
from keras_deepseek.callbacks import MetricsLog
from keras_deepseek.training import Trainer

class Kill(keras.callbacks.Callback):
    left = int(sys.argv[2])
    def get_state(self): pass
    def set_state(self, state): pass
    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model

folder = sys.argv[1]
trainer = Trainer(build, checkpoint_dir=folder + "/checkpoints", checkpoint_every=2, seed=1)
logs = [MetricsLog(folder + "/log.jsonl"), Kill()]
data = (np.ones((12, 2), "float32"), np.ones((12, 1), "float32"))
trainer.fit(*data, batch_size=4, epochs=3, verbose=0, callbacks=logs, resume=True)
"""


@pytest.mark.nightly
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL.")
def test_a_training_that_was_killed_has_each_line_once(tmp_path):
    for kill_at, code in ((5, -signal.SIGKILL), (0, 0)):
        command = [sys.executable, "-c", SCRIPT, tmp_path, str(kill_at)]
        assert subprocess.run(command, check=False).returncode == code
        if kill_at:
            with (tmp_path / "log.jsonl").open("a") as file:
                file.write('{"step": 7')  # As by a power cut.
    rows = [(row["kind"], int(row["step"])) for row in read(tmp_path / "log.jsonl")]
    steps = {epoch: [("step", 3 * epoch + step) for step in (1, 2, 3)] for epoch in range(3)}
    assert rows == [row for epoch in range(3) for row in (*steps[epoch], ("epoch", 3 * epoch + 3))]

"""Memory of a process that makes many models, one after the other."""

import os
import subprocess
import sys

import pytest

CHILD = """
import ctypes, gc, sys, tempfile, weakref
from pathlib import Path

import keras
import numpy as np

from keras_deepseek.deploy import Exporter
from keras_deepseek.inference import ServingEngine
from keras_deepseek.training import Trainer

x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")

def train(model):
    Trainer(model, optimizer="adam", loss="mse").fit(x, x[:, :2], batch_size=8, verbose=0)

def export(model):
    with tempfile.TemporaryDirectory() as folder:
        Exporter(model, backend="onnx", verbose=False).export(Path(folder) / "bundle")

def serve(model):
    with ServingEngine(model=model, max_batch_size=4) as engine:
        engine.predict(x)

use, num_models = globals()[sys.argv[1]], int(sys.argv[2])
alive = []
for number in range(1, num_models + 1):
    inputs = keras.Input((8,), name="x")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(16, "relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="y")(hidden))
    use(model)
    alive.append(weakref.ref(model))
    del model, inputs, hidden
    if number % 50 == 0 or number == num_models:
        gc.collect()
        assert [index for index, model in enumerate(alive) if model() is not None] == []
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print("MB", pages * 4096 // 10**6, flush=True)
"""


def measure(use, num_models):
    """Returns the megabytes of a process after each 50 models, all of which were collected."""
    command = [sys.executable, "-c", CHILD, use, str(num_models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("MB")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("use", ["train", "export", "serve"])
def test_memory_stays_level_over_200_models(use):
    if use == "train" and os.environ["KERAS_BACKEND"] == "tensorflow":
        pytest.skip("TensorFlow keeps the graph of each training step, after Keras's `fit` as well")
    after_50, *_, after_200 = measure(use, 200)
    assert after_200 - after_50 < 75  # Half a megabyte for a model.

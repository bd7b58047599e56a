"""
Title: Train with a parameter server
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: Workers that don't wait for each other, old gradients, and what they do to the loss.
Time: 2 minutes on two cores
Install: "keras_deepseek[pictures,ray]" scikit-learn
"""

"""
With all-reduce, each step waits for the slowest process. A parameter server holds the weights for
workers that don't wait: each takes the current weights, computes the gradients of its batch, and
sends them. It pays where workers differ in speed, or where most of the weights are embeddings, of
which a batch touches few rows.

The price is that gradients are older than the weights they change. `staleness_bound` limits how
many updates they may have missed. Here you train with three bounds and compare.

On JAX and PyTorch, [Ray](https://docs.ray.io) starts and watches the processes. On TensorFlow its
own coordinator does, and Ray is not needed.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek.artifacts import RunRecord

folder = Path(tempfile.mkdtemp(prefix="parameter_server_"))
script = folder / "train.py"

"""
## The script

One process runs it: the chief, which has the data and the callbacks. It starts two workers and a
server by itself, on this machine or on a Ray cluster. TensorFlow must know of them before it
computes anything, so `join_cluster` comes first; on the other backends that line does nothing.
"""

script.write_text("""
import json, sys

from keras_deepseek.training import ParameterServer, Trainer, join_cluster

folder, bound = sys.argv[1], json.loads(sys.argv[2])
server = ParameterServer(num_workers=2, num_servers=1, staleness_bound=bound)
join_cluster(server)

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
split = train_test_split(images, labels, random_state=0)
train_images, test_images, train_labels, test_labels = split


def build():
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((64,)), *layers])


trainer = Trainer(
    build,
    optimizer=keras.optimizers.Adam(3e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    distributed_strategy=server,
    seed=0,
)
trainer.record_run(f"{folder}/run.sqlite")
trainer.fit(train_images, train_labels, batch_size=32, epochs=6, verbose=2)
loss, accuracy = trainer.model.evaluate(test_images, test_labels, verbose=0)
print(json.dumps({"loss": loss, "accuracy": accuracy}))
""")


def train(bound):
    """Runs the script, and returns the loss of each update and the accuracy on new digits."""
    run_folder = folder / f"bound_{bound}"
    run_folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(run_folder), json.dumps(bound)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    with RunRecord(run_folder / "run.sqlite", read_only=True) as run:
        losses = np.array([loss for _, loss in run.scalars("loss")])
    print(f"staleness_bound={bound}: {len(losses)} updates, {result}")
    return losses, result["accuracy"]


"""
## Three bounds

With 0, one update follows the other, with the numbers of a single process: the workers take turns,
and nothing is gained. The default is 2 for each worker: while one update is made, the next batches
are under way. A bound of 16 lets gradients be much older than two workers need.
"""

curves = {bound: train(bound) for bound in (0, None, 16)}

"""
## Look

The curves lie close together: with two workers and a small learning rate, old gradients do little
harm. With many workers or a high rate they do: lower the rate, or the bound.
"""

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
for bound, (losses, accuracy) in curves.items():
    label = f"{'default' if bound is None else bound}: accuracy {accuracy:.3f}"
    axis.plot(np.arange(1, len(losses) + 1), losses, label=label)
axis.set(xlabel="update", ylabel="mean loss since the epoch began")
axis.legend(title="staleness_bound")
figure.savefig("parameter_server.png")
print(f"{keras.backend.backend()}: see {folder}")
for losses, accuracy in curves.values():
    assert len(losses) == 6 * 43
    assert accuracy > 0.9
assert abs(curves[0][0][-1] - curves[None][0][-1]) < 0.1

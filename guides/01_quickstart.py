"""
Title: From a Keras model to a served prediction
Author: The keras_deepseek authors
Date created: 2026/11/25
Last modified: 2026/11/25
Description: Train, export and serve a digit classifier on TensorFlow, JAX or PyTorch.
"""

"""
The same text runs on all three backends: set `KERAS_BACKEND` to `tensorflow`, `jax` or `torch`
before you start it. The data are scikit-learn's 1,797 handwritten digits, 8 by 8 pixels each.
"""

import json
import tempfile
import urllib.request

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.deploy import Exporter
from keras_deepseek.inference import ServingEngine
from keras_deepseek.layers import Conv2D, Dense, Flatten, MaxPooling2D
from keras_deepseek.training import Trainer

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
split = train_test_split(images, labels, random_state=0)
train_images, test_images, train_labels, test_labels = split

"""
## Build

Keras's own layers come from `keras_deepseek.layers`, beside the package's. A model stays a plain
`keras.Model` from here to the end.
"""

model = keras.Sequential(
    [
        keras.Input((8, 8, 1), name="image"),
        Conv2D(32, 3, padding="same", activation="relu"),
        MaxPooling2D(),
        Conv2D(64, 3, padding="same", activation="relu"),
        Flatten(),
        Dense(10, activation="softmax", name="probabilities"),
    ],
    name="digits",
)

"""
## Train

`fp16_enabled` makes the training step compute in half precision: float16 with loss scaling on a
GPU, bfloat16 on TPU and CPU. It ends with the training. The learning rate warms up over the first
epochs.
"""


def warmup_lr(step, total_steps, initial_lr, final_lr):
    return initial_lr + (final_lr - initial_lr) * step / total_steps


model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
trainer = Trainer(model=model, optimizer=keras.optimizers.Adam(), fp16_enabled=True)
scheduler = LRScheduler(func=warmup_lr, total_steps=200, initial_lr=1e-5, final_lr=2e-3)
trainer.add_callback(scheduler)
trainer.fit(train_images, train_labels, epochs=15, batch_size=32, verbose=2)
_, accuracy = trainer.evaluate(test_images, test_labels, verbose=0)

"""
## Export

Each export is run on batches of several sizes and compared with the model. It is verified, or it
fails. From JAX and PyTorch it goes through TensorFlow, in a process of its own.
"""

folder = tempfile.mkdtemp(prefix="digits_")
onnx = Exporter(model, backend="onnx").export(f"{folder}/digits.onnx")
saved_model = Exporter(model, backend="savedmodel").export(f"{folder}/digits/1")

"""
## Serve

The engine puts requests that arrive together into one batch. It speaks TensorFlow Serving's REST
form, so its clients need no change.
"""

body = json.dumps({"instances": test_images.tolist()}).encode()
with ServingEngine(model=model, batch_size="dynamic", max_batch_size=32, name="digits") as engine:
    server = engine.serve(http_port=0)
    with urllib.request.urlopen(f"{server.url}/v1/models/digits:predict", body) as response:
        served = np.array(json.load(response)["predictions"])

difference = np.abs(served - model.predict(test_images, verbose=0)).max()
print(f"{keras.backend.backend()}: accuracy {accuracy:.3f}, served within {difference:.1e}")
assert accuracy >= 0.95
assert difference <= 1e-5
assert onnx.verified
assert saved_model.verified

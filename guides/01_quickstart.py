"""
Title: From a Keras model to a served prediction
Author: The keras_deepseek authors
Date created: 2026/11/25
Last modified: 2026/11/30
Description: Train, export and serve a digit classifier on TensorFlow, JAX or PyTorch.
Time: 30 seconds on two cores
Install: "keras_deepseek[onnx,pictures,serving,tensorflow]" scikit-learn
"""

"""
You train a network that reads handwritten digits, write it to files that other programs can run,
and ask it over HTTP, as an application would. The data are scikit-learn's 1,797 real digits of
8 by 8 pixels. They come with the package, so nothing is downloaded.

A quarter of the digits is kept back. The network never sees them in training, so they show how well
it reads digits that are new to it.
"""

import json
import urllib.request

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras.layers import Conv2D, Dense, Flatten, MaxPooling2D
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.deploy import Exporter
from keras_deepseek.inference import ServingEngine
from keras_deepseek.training import Trainer

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(images, labels, random_state=0)

"""
## Build

The model is a plain `keras.Model`, and stays one to the end. You can leave this package after any
step and go on with Keras alone.
"""

layers = [
    keras.Input((8, 8, 1), name="image"),
    Conv2D(32, 3, padding="same", activation="relu"),
    MaxPooling2D(),
    Conv2D(64, 3, padding="same", activation="relu"),
    Flatten(),
    Dense(10, activation="softmax", name="probabilities"),
]
model = keras.Sequential(layers, name="digits")

"""
## Train

A `Trainer` is `model.fit` with more options. `fp16_enabled` computes in half precision, which is
faster on most accelerators: float16 on a GPU, bfloat16 elsewhere. `LRScheduler` raises the learning
rate from 0 to 0.001 in the first 200 steps. Large steps at the start, when the weights are still
random, often spoil a training.
"""

model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
trainer = Trainer(model=model, optimizer="adam", fp16_enabled=True)
warmup = LRScheduler(lambda step, total, _, high: high * step / total, total_steps=200)
trainer.add_callback(warmup)
trainer.fit(x_train, y_train, epochs=15, batch_size=32, verbose=2)
_, accuracy = trainer.evaluate(x_test, y_test, verbose=0)

"""
## Export

An application should not need Keras to use the model. ONNX Runtime, TensorFlow Serving and many
others run these files. The exporter runs each file on batches of several sizes and compares the
answers with the model's. It raises an error where they differ. From JAX and PyTorch the export goes
through TensorFlow, which has to be installed too.
"""

onnx = Exporter(model, backend="onnx").export("exports/digits.onnx")
saved_model = Exporter(model, backend="savedmodel").export("exports/digits/1")

"""
## Serve

The engine answers over HTTP. Requests that arrive at the same time share one batch, which is much
faster than one call of the model for each. The addresses and the JSON are those of TensorFlow
Serving, so its clients work unchanged. Here the client is Python's own `urllib`.
"""

body = json.dumps({"instances": x_test.tolist()}).encode()
with ServingEngine(model=model, batch_size="dynamic", max_batch_size=32, name="digits") as engine:
    server = engine.serve(http_port=0)  # 0 takes a free port.
    with urllib.request.urlopen(f"{server.url}/v1/models/digits:predict", body) as response:
        served = np.array(json.load(response)["predictions"])

"""
## Look

Above each digit stands the answer that was served. All of them are new to the network.
"""

_, axes = plt.subplots(2, 10, figsize=(8, 2.2))
for axis, image, row in zip(axes.flat, x_test, served, strict=False):
    axis.set(title=row.argmax(), xticks=[], yticks=[])
    axis.imshow(image, cmap="gray_r")
plt.savefig("digits.png")

difference = np.abs(served - model.predict(x_test, verbose=0)).max()
print(f"{keras.backend.backend()}: accuracy {accuracy:.3f}, served within {difference:.1e}")
assert accuracy >= 0.95
assert difference <= 1e-5
assert onnx.verified
assert saved_model.verified

"""
Title: Export a model in every format, and in one of your own
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: Verified files for ONNX Runtime, TensorFlow and OpenVINO, and how fast each answers.
Time: 30 seconds on two cores, 1 minute with JAX or PyTorch
Install: "keras_deepseek[onnx,openvino,pictures,tensorflow]" scikit-learn
"""

"""
A model that is in use seldom runs in the framework that trained it. This guide writes one model in
each format, shows how a wrong file is found before anyone uses it, adds a new format in twenty
lines, and compares the speed of all of them.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_deepseek.deploy import Exporter, ExportFormat, compare_latencies, register_exporter
from keras_deepseek.errors import ExportError, MissingExtraError

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = images.astype("float32") / 16
split = train_test_split(images, labels, random_state=0)
train_images, test_images, train_labels, test_labels = split

"""
## The model

Any Keras model will do. The names of its input and of its last layer become the names that a client
has to use, so choose them well.
"""

model = keras.Sequential(
    [
        keras.Input((64,), name="pixels"),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(10, activation="softmax", name="probabilities"),
    ],
    name="digits",
)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(train_images, train_labels, epochs=20, batch_size=32, verbose=0)
expected = model.predict(test_images, verbose=0)
accuracy = np.mean(expected.argmax(axis=1) == test_labels)
print(Exporter(model, "onnx").signature)

"""
## Every format

An `Exporter` writes the file, runs it on random batches of several sizes, and compares each output
with the model's. The report says how many batches agreed, and how large the largest difference was.
A format whose packages are not installed says which extra to install.

From JAX and PyTorch the export goes through TensorFlow, in a process of its own, so TensorFlow has
to be installed too. A TensorRT engine
can be built without a GPU, but not run: its report says `unverified`.
"""

reports = {}
for name in ("onnx", "savedmodel", "openvino", "tensorrt"):
    try:
        reports[name] = Exporter(model, name, verbose=False).export(f"exports/{name}")
        print(reports[name])
    except MissingExtraError as error:
        print(f"skipped {name}: {error}")

"""
## A wrong file is found

Here the model learns on after the export, so the file no longer computes the same as the model.
`check` compares the two again. A file that fails while it is exported is never written at all.
"""

weights = model.get_weights()
model.fit(train_images, train_labels, batch_size=32, verbose=0)
try:
    Exporter(model, "onnx").check("exports/onnx")
except ExportError as error:
    outdated = str(error)
    print(outdated)
model.set_weights(weights)

"""
## A format of your own

Suppose a small device has Python and NumPy, and nothing else. A format is a class with a name, the
names of its files, and two methods: `write` makes the file from the model, and `run` computes
batches from the file, by which the export is verified. With `load` the format can also be timed.
"""


class NumPyFormat(ExportFormat):
    """The kernels and biases of a stack of `Dense` layers, in a file for NumPy."""

    suffix, entry = ".npz", "weights.npz"

    def __init__(self, name, dtype):
        self.name, self.dtype = name, dtype

    def write(self, model, folder):
        arrays = [np.asarray(weight, self.dtype) for weight in model.model.get_weights()]
        np.savez(folder / self.entry, *arrays)
        return f"weights in {self.dtype}"

    def load(self, folder):
        with np.load(folder / self.entry) as file:
            weights = [file[name].astype("float32") for name in file.files]

        def infer(inputs):
            hidden = inputs["pixels"]
            for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
                hidden = np.maximum(hidden @ kernel + bias, 0)
            logits = hidden @ weights[-2] + weights[-1]
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            return {"probabilities": powers / powers.sum(axis=1, keepdims=True)}

        return infer

    def run(self, folder, samples):
        infer = self.load(folder)
        return [infer(sample) for sample in samples]


register_exporter(NumPyFormat("numpy", "float32"))
register_exporter(NumPyFormat("numpy_half", "float16"))
print(numpy_report := Exporter(model, "numpy", verbose=False).export("exports/numpy"))

"""
The second of the two formats rounds the weights to 16 bits, and does not say so. Is that good
enough? The export decides, not the author of the format: it is refused, and leaves no file.
"""

try:
    Exporter(model, "numpy_half", verbose=False).export("exports/numpy_half")
except ExportError as error:
    refused = str(error)
    print(refused)

"""
## Which one is fastest here?

`compare_latencies` exports to each format that is known, also to those that were registered, and
times them in turns beside the model itself. With rows for `calibration` it adds an ONNX file that
multiplies integers of 8 bits. Formats that can't be used here are listed with the reason.
"""

table = compare_latencies(
    model, batch_sizes=(1, 32), seconds=0.3, calibration=train_images[:200], verbose=False
)
print(table)

"""
## Look

All of these files answer as the model does, on real digits too. A bar is the time of one batch. How
much faster a file is depends on the model and the machine, so measure yours.
"""

_, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
names = list(dict.fromkeys(row.format for row in table.rows))
for shift, size in ((-0.2, 1), (0.2, 32)):
    times = [row.milliseconds for row in table.rows if row.batch_size == size]
    bars = axes.bar(np.arange(len(names)) + shift, times, 0.4, label=f"batch of {size}")
    axes.bar_label(bars, fmt="%.2f")
axes.set_xticks(range(len(names)), names)
axes.set(ylabel="milliseconds for a batch", title="A small network in each format")
axes.legend()
plt.savefig("latencies.png")

print(f"{keras.backend.backend()}: accuracy {accuracy:.3f}")
for name, report in {**reports, "numpy": numpy_report}.items():
    if report.verified:
        answers = Exporter(model, name).load(report.path)({"pixels": test_images})["probabilities"]
        np.testing.assert_allclose(answers, expected, atol=1e-5, err_msg=name)
assert accuracy > 0.95
assert reports["onnx"].verified
assert reports["savedmodel"].verified
assert numpy_report.verified
assert "differs by" in outdated
assert "differs by" in refused

"""
The next guide puts a file behind HTTP. The page on export explains how outputs are compared, what
each format can't hold, and how to export in lower precision.
"""

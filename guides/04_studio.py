"""
Title: Find out why a training fails, with Studio
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: A network that learns nothing, the sentence that says why, the remedy, and a profile.
Time: 30 seconds on two cores
Install: "keras_deepseek[pictures]" scikit-learn
"""

"""
A loss that does not fall tells you that something is wrong, but not what. Studio shows a training
while it runs, in the browser, and says in words what is wrong with it. This guide trains a network
that cannot learn, lets Studio find the reason, and mends it.
"""

import keras
import matplotlib.pyplot as plt
from keras.layers import Dense, Flatten, LayerNormalization
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_deepseek.artifacts import RunRecord
from keras_deepseek.studio import launch_studio
from keras_deepseek.training import Trainer

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8).astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(images, labels, random_state=0)

"""
## A network that is too deep for its activations

Sixteen layers with sigmoid activations, one after the other, as people built networks in the
nineties. What is wrong with that? We pretend not to know.
"""

DEPTH = 16


def make_plain():
    inputs = hidden = keras.Input((8, 8))
    hidden = Flatten()(hidden)
    for number in range(DEPTH):
        hidden = Dense(64, activation="sigmoid", name=f"hidden_{number}")(hidden)
    return keras.Model(inputs, Dense(10, activation="softmax")(hidden), name="plain")


"""
## Train it under Studio

`launch_studio` prints the address of the page and has the trainer record its next trainings. The
page is a process of its own: you can close and open it at any time, and the training does not
notice. `layer_statistics` also records each layer's gradient, which takes a little time in each
step.
"""


def make_trainer(make_model):
    return Trainer(
        make_model,
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        layer_statistics=True,
        seed=0,
    )


options = {"batch_size": 32, "epochs": 12, "validation_data": (x_test, y_test), "verbose": 0}
trainer = make_trainer(make_plain)
studio = launch_studio(trainer, path="runs/plain.sqlite")
trainer.fit(x_train, y_train, **options)
_, accuracy_plain = trainer.evaluate(x_test, y_test, verbose=0)
print(f"accuracy {accuracy_plain:.2f}")

"""
One digit in ten is right: that is guessing. The page says why in its first sentence. A script asks
for the same findings.
"""


for finding in studio.findings()["plain"]:
    print(f"{finding['level']}: {finding['sentence']} {finding['advice']}")

"""
## Follow the advice

The slope of a sigmoid is a quarter at most. Each layer multiplies the gradient by such a number, so
that almost nothing of it arrives at the first layers. Studio proposes normalization or a residual
connection. With both, the gradient has a way around each sigmoid.
"""


def make_mended():
    inputs = hidden = keras.Input((8, 8))
    hidden = Dense(64)(Flatten()(hidden))
    for number in range(DEPTH):
        layer = Dense(64, activation="sigmoid", name=f"hidden_{number}")
        hidden = hidden + layer(LayerNormalization(name=f"norm_{number}")(hidden))
    outputs = Dense(10, activation="softmax")(LayerNormalization()(hidden))
    return keras.Model(inputs, outputs, name="mended")


trainer = make_trainer(make_mended)
trainer.record_run("runs/mended.sqlite")  # A record in the same folder is on the same page.
trainer.fit(x_train, y_train, **options)
_, accuracy_mended = trainer.evaluate(x_test, y_test, verbose=0)
print(f"accuracy {accuracy_mended:.2f}")
print([finding["sentence"] for finding in studio.findings()["mended"]])

"""
## Where does the time go?

`profile` measures five steps with the framework's own profiler, and leaves the model as it was. The
page shows the same numbers, and has a button that profiles a training while it runs. A network as
small as this leaves the processor idle for most of a step: a larger batch would be almost free.
"""

print(trainer.profile(x_train, y_train, batch_size=32))

"""
## Keep it

A report is the whole page in one file, without a server. Mail it, or keep it beside the weights. In
a notebook, the last line of this cell shows the page here.
"""

studio.snapshot("report.html")
studio

"""
## Look

A run record is a file that you can read yourself. On the left is the loss of each step, and on the
right the gradient of each hidden layer in the last step.
"""

_, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for run in ("plain", "mended"):
    record = RunRecord(f"runs/{run}.sqlite", read_only=True)
    left_axis.plot(*zip(*record.scalars("step_loss"), strict=True), label=run)
    names = record.document("vector:layer_gradient_norms")["labels"]
    norms = dict(zip(names, record.vectors("layer_gradient_norms")[-1][1], strict=True))
    right_axis.plot([norms[f"hidden_{number}"] for number in range(DEPTH)], "o-", label=run)
    record.close()
left_axis.set(title="Loss", xlabel="step")
right_axis.set(title="Norm of the gradient", xlabel="hidden layer", yscale="log")
right_axis.legend()
plt.savefig("studio.png")
finding_names = {
    run: {finding["name"] for finding in all_of_it} for run, all_of_it in studio.findings().items()
}
studio.stop()
assert "vanishing" in finding_names["plain"]
assert "vanishing" not in finding_names["mended"]
assert accuracy_plain < 0.3
assert accuracy_mended > 0.9

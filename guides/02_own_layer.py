"""
Title: Write a layer, test it, and train it in a step of your own
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: An activation that learns its shape, checked in one call, and a loss that Keras lacks.
Time: 30 seconds on two cores
Install: "keras_deepseek[pictures]" scikit-learn
"""

"""
Sooner or later Keras lacks the layer or the loss that you need. This guide writes both with
`keras.ops`, so that they run on TensorFlow, JAX and PyTorch without a change.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_deepseek.testing import LayerTestCase
from keras_deepseek.training import Trainer

"""
## A layer

Swish, `x * sigmoid(x)`, is a smooth relative of relu. Here it gets a weight for each feature, the
slope: near 0 the function is a straight line, and with a large slope it is almost relu. The network
finds out which form it needs.

`build` makes the weights once the width of the input is known. `get_config` returns the arguments,
so that a saved model can be loaded. `supports_masking` lets Keras pass a mask on unchanged.
"""


@keras.saving.register_keras_serializable("own_layer")
class LearnedSwish(keras.Layer):
    def __init__(self, initial_slope=1.0, **kwargs):
        super().__init__(**kwargs)
        self.initial_slope = initial_slope
        self.supports_masking = True

    def build(self, input_shape):
        start = keras.initializers.Constant(self.initial_slope)
        self.slope = self.add_weight(shape=(input_shape[-1],), initializer=start, name="slope")

    def call(self, inputs):
        return inputs * ops.sigmoid(self.slope * inputs)

    def get_config(self):
        return {**super().get_config(), "initial_slope": self.initial_slope}


"""
## One call that tests it

A layer owes its users more than the right numbers: it must survive saving, work in half precision
and inside a compiled step, take an empty batch, pass on masks, and have the right gradients. One
call tests all this. `oracle` is the formula once more, in NumPy and float64.
"""


def swish(layer, inputs):
    slope = ops.convert_to_numpy(layer.slope).astype("float64")
    return inputs / (1 + np.exp(-slope * inputs))


LayerTestCase().run_layer_test(LearnedSwish, {"initial_slope": 2.0}, (2, 3, 5), oracle=swish)

"""
What does a mistake look like? This copy forgets an argument in its config, which nobody would
notice before a saved model is loaded.
"""


@keras.saving.register_keras_serializable("own_layer")
class Forgetful(LearnedSwish):
    def get_config(self):
        return keras.Layer.get_config(self)


try:
    LayerTestCase().run_layer_test(Forgetful, {"initial_slope": 2.0}, (2, 3, 5))
except AssertionError as error:
    print(error)

"""
## A step of your own

The digits of scikit-learn all stand in the middle of their image. A network that has seen only such
digits fails as soon as one is moved by a single pixel. So we ask for more: the answer for a moved
digit should be the answer for the digit itself. That is a second loss, and it needs both answers in
one step.

`train_step` gets a batch and returns the loss. What else it returns is logged. It is the same
method on every backend. The trainer compiles it, takes the gradients and applies its other options
(half precision, clipping, micro-batches) around it.
"""


def move(images):
    return ops.roll(images, 1, axis=2)


class SteadyTrainer(Trainer):
    def train_step(self, x, y=None, sample_weight=None):
        answers = self.model(x, training=True)
        moved = self.model(move(x), training=True)
        loss = self.model.compute_loss(x, y, answers, sample_weight)
        difference = ops.mean(keras.losses.kl_divergence(answers, moved))
        return {"loss": loss + difference, "difference": difference}


"""
## Train both

The same network is trained twice: by Keras's loss alone, and by both losses.
"""

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8).astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(images, labels, random_state=0)
moved_test = ops.convert_to_numpy(move(x_test))


def make_model():
    layers = [keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(64)]
    layers += [LearnedSwish(name="swish"), keras.layers.Dense(10, activation="softmax")]
    return keras.Sequential(layers)


def count_right(model, images):
    return float(np.mean(model.predict(images, verbose=0).argmax(axis=1) == y_test))


options = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "seed": 0}
plain = Trainer(make_model, **options)
plain.fit(x_train, y_train, batch_size=32, epochs=20, verbose=0)

"""
`steps` makes a training a loop of yours. Each step does what one of `fit` does. Between two steps
you may look at the model, change it, or leave. Here we keep the slopes of the layer at the start of
each epoch, and stop as soon as the loss of a batch is low enough.
"""

steady = SteadyTrainer(make_model, **options)
slopes = []
for step in steady.steps(x_train, y_train, batch_size=32, epochs=60):
    if step.number > 0:
        continue
    slopes.append(ops.convert_to_numpy(steady.model.get_layer("swish").slope))
    if step.epoch % 10 == 0:
        print(f"epoch {step.epoch}:", {name: round(value, 3) for name, value in step.logs.items()})
    if step.logs["loss"] < 0.05:
        break

"""
## Look

The plain network reads more than half of the moved digits wrong. On the right, each line is the
slope of one of the 64 features: the network made all of them steeper, some much more than others.
"""

kinds = {"in the middle": x_test, "moved": moved_test}
shares = {
    name: [count_right(trainer.model, kind) for kind in kinds.values()]
    for name, trainer in {"one loss": plain, "two losses": steady}.items()
}
print(keras.backend.backend(), shares)
_, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left_axis.bar([0, 2], shares["one loss"], label="one loss")
left_axis.bar([1, 3], shares["two losses"], label="two losses")
left_axis.set(title="Share of new digits read right", xticks=[0.5, 2.5], xticklabels=list(kinds))
left_axis.legend(loc="lower left")
right_axis.plot(slopes, color="tab:blue", alpha=0.3)
right_axis.set(title="The slopes of the learned activation", xlabel="epoch")
plt.savefig("own_layer.png")
assert min(shares["two losses"]) > 0.9
assert shares["two losses"][1] > shares["one loss"][1] + 0.2

"""The example of keras.io that reshapes its batch in a `train_step` of its own.

That is written once for each backend, as the guides "Customizing what happens in fit()" do.
"""

import keras
import numpy as np
from keras import layers, ops

from example_tests.keras_io.example import Example, adam, random

NUM_CLASSES, SIZE, TEMPERATURE = 4, 8, 0.2


class AnchorPositivePairs(keras.utils.PyDataset):
    """Batches of (2, classes, height, width, channels): an anchor and a positive of each class."""

    def __init__(self, num_batches):
        super().__init__()
        self.length = num_batches

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        noise = random(index).random((2, NUM_CLASSES, SIZE, SIZE, 3), "float32")
        return (0.3 * noise + 0.2 * np.eye(NUM_CLASSES, 3)[:, None, None]).astype("float32")


def similarities(anchors, positives):
    return ops.einsum("ae,pe->ap", anchors, positives) / TEMPERATURE


loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class TensorFlowEmbeddingModel(keras.Model):
    def train_step(self, data):
        import tensorflow as tf

        data = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            y_pred = similarities(self(data[0], training=True), self(data[1], training=True))
            labels = ops.arange(NUM_CLASSES)
            loss = self.compute_loss(y=labels, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(labels, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


class TorchEmbeddingModel(keras.Model):
    def train_step(self, data):
        import torch

        data, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.zero_grad()
        y_pred = similarities(self(data[0], training=True), self(data[1], training=True))
        loss = loss_of(ops.arange(NUM_CLASSES), y_pred)
        loss.backward()
        gradients = [weight.value.grad for weight in self.trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_weights)
        for metric in self.metrics:
            metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}


class JaxEmbeddingModel(keras.Model):
    def compute_loss_and_updates(self, trainable, non_trainable, data):
        anchors, non_trainable = self.stateless_call(
            trainable, non_trainable, data[0], training=True
        )
        positives, non_trainable = self.stateless_call(
            trainable, non_trainable, data[1], training=True
        )
        loss = loss_of(ops.arange(NUM_CLASSES), similarities(anchors, positives))
        return loss, non_trainable

    def train_step(self, state, data):
        import jax

        trainable, non_trainable, optimizer_variables, metrics_variables = state
        data, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        gradient_of = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (loss, non_trainable), gradients = gradient_of(trainable, non_trainable, data)
        trainable, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, trainable
        )
        (tracker,) = self.metrics
        metrics_variables = tracker.stateless_update_state(metrics_variables, loss)
        logs = {"loss": tracker.stateless_result(metrics_variables)}
        return logs, (trainable, non_trainable, optimizer_variables, metrics_variables)


EmbeddingModel = {
    "jax": JaxEmbeddingModel,
    "tensorflow": TensorFlowEmbeddingModel,
    "torch": TorchEmbeddingModel,
}[keras.backend.backend()]


def embedding_model():
    inputs = layers.Input(shape=(SIZE, SIZE, 3))
    x = layers.Conv2D(filters=6, kernel_size=3, strides=2, activation="relu")(inputs)
    x = layers.Conv2D(filters=8, kernel_size=3, strides=1, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    embeddings = layers.Dense(units=8, activation=None)(x)
    return EmbeddingModel(inputs, layers.UnitNormalization()(embeddings))


def metric_learning_arguments():
    optimizer = adam(3e-3)
    if keras.backend.backend() == "tensorflow":
        return {"optimizer": optimizer, "loss": loss_of}
    # Elsewhere Keras itself calls the model on a whole batch, which it can't take, to build a loss.
    return {"optimizer": optimizer}


METRIC_LEARNING = Example(
    path="vision/metric_learning",
    make_model=embedding_model,
    make_data=lambda num_rows: (AnchorPositivePairs(num_rows // 4), None),
    compile_arguments=metric_learning_arguments,
    fresh_inputs=lambda: [
        random(num_rows).random((num_rows, SIZE, SIZE, 3), "float32") for num_rows in (1, 3, 7)
    ],
    has_own_step=True,
)

EXAMPLES = [METRIC_LEARNING]

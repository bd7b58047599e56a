import keras
import numpy as np
from keras import ops

from keras_deepseek.training import Trainer
from tests.oracles.own_step import StepOfItsOwn, apply, train_killed_and_whole

# Batches of anchors and positives.
PAIRS = np.random.default_rng(0).normal(size=(6, 2, 5, 8)).astype("float32")


class Embedding(StepOfItsOwn, keras.Model):
    """A metric learner, whose batch is two of what it is called on."""

    def compute(self, data):
        anchors, positives = data[0][0], data[0][1]  # Keras makes a tuple of `x`.
        products = ops.matmul(self(anchors), ops.transpose(self(positives)))
        labels = ops.arange(5)
        loss = self.compute_loss(None, labels, products)
        return loss, self.compute_metrics(None, labels, products)

    def make_step(self, data):
        logs = {}

        def compute():
            loss, step_logs = self.compute(data)
            logs.update(step_logs)
            return loss

        states = [*self.non_trainable_variables, *self.metrics_variables]
        loss = apply(self.optimizer, compute, self.trainable_variables, states)
        self._loss_tracker.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}


def make_embedding():
    inputs = keras.Input((8,))
    model = Embedding(inputs, keras.layers.Dense(3)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"])
    return model


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return len(PAIRS)

    def __getitem__(self, index):
        return PAIRS[index]


def test_a_model_that_splits_its_batch_trains_and_resumes(tmp_path):
    history = Trainer(make_embedding, seed=3).fit(Batches(), epochs=8, verbose=0).history
    assert set(history) == {"loss", "accuracy"}
    assert history["loss"][-1] < history["loss"][0]
    if keras.backend.backend() == "torch":  # Where its metrics are made by the first step.
        return
    resumed, whole = train_killed_and_whole(make_embedding, tmp_path, Batches())
    for received, reference in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(received, reference)

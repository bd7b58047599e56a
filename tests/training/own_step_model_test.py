"""Models with a `train_step` of their own, of kinds that keras.io shows."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.training import Trainer

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(16, 8)).astype("float32")
PAIRS = RANDOM.normal(size=(6, 2, 5, 8)).astype("float32")  # Batches of anchors and positives.
IS_JAX = keras.backend.backend() == "jax"


def apply(optimizer, compute, variables, states):
    """Updates variables by the gradients of a loss, and returns the loss."""

    def compute_twice():
        loss = compute()
        return loss, ops.stop_gradient(loss)

    loss, backward = backend.current().differentiate(compute_twice, variables, states)
    optimizer.apply(backward(), variables)
    return loss


class Gan(keras.Model):
    """Two models and their two optimizers, of which Keras knows neither."""

    def __init__(self):
        super().__init__()
        self.critic = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        self.maker = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        self.seeds = keras.random.SeedGenerator(3)
        self.mean = keras.metrics.Mean(name="maker_loss")

    def compile(self, optimizers):
        super().compile()
        self.optimizers = optimizers

    def train_step(self, data):
        real = data[0] if isinstance(data, tuple) else data
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        states = [*self.non_trainable_variables, *self.metrics_variables]

        def make():
            return self.maker(keras.random.normal((4, 4), seed=self.seeds))

        def criticize():
            return loss(ops.ones((4, 1)), self.critic(real)) + loss(
                ops.zeros((4, 1)), self.critic(make())
            )

        def deceive():
            return loss(ops.ones((4, 1)), self.critic(make()))

        apply(self.optimizers["critic"], criticize, self.critic.trainable_variables, states)
        self.mean.update_state(
            apply(self.optimizers["maker"], deceive, self.maker.trainable_variables, states)
        )
        return {"maker_loss": self.mean.result()}


def make_gan():
    model = Gan()
    model.compile({"critic": keras.optimizers.Adam(0.1), "maker": keras.optimizers.Adam(0.1)})
    return model


class Embedding(keras.Model):
    """A metric learner, whose batch is two of what it is called on."""

    def compute(self, data):
        anchors, positives = data[0][0], data[0][1]  # Keras makes a tuple of `x`.
        products = ops.matmul(self(anchors), ops.transpose(self(positives)))
        labels = ops.arange(5)
        loss = self.compute_loss(None, labels, products)
        return loss, self.compute_metrics(None, labels, products)

    if IS_JAX:

        def train_step(self, state, data):
            groups = (
                self.trainable_variables,
                self.non_trainable_variables,
                self.optimizer.variables,
                self.metrics_variables,
            )
            mapping = [
                pair for each in zip(groups, state, strict=True) for pair in zip(*each, strict=True)
            ]
            with keras.StatelessScope(mapping) as scope:
                logs = self.make_step(data)
            return logs, tuple(
                [scope.get_current_value(variable) for variable in group] for group in groups
            )

    else:

        def train_step(self, data):
            return self.make_step(data)

    def make_step(self, data):
        logs = {}

        def compute():
            loss, found = self.compute(data)
            logs.update(found)
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


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_at(step):
    left = [step]

    def count(batch, logs):
        left[0] -= 1
        if not left[0]:
            raise KilledError

    return keras.callbacks.LambdaCallback(on_train_batch_end=count)


def train_killed_and_whole(make, folder, x, **options):
    """Returns a model that was killed and resumed, and one that was not."""

    def trainer(name):
        return Trainer(make, checkpoint_dir=folder / name, checkpoint_every=1, seed=3)

    options = {"epochs": 2, "verbose": 0, **options}
    whole, killed, resumed = trainer("whole"), trainer("killed"), trainer("killed")
    whole.fit(x, **options)
    with pytest.raises(KilledError):
        killed.fit(x, **options, callbacks=[kill_at(3)])
    resumed.fit(x, **options, resume=True)
    return resumed.model, whole.model


@pytest.mark.skipif(IS_JAX, reason="On JAX a step is given the variables of one optimizer.")
def test_the_two_optimizers_of_a_gan_are_in_its_checkpoints(tmp_path):
    resumed, whole = train_killed_and_whole(make_gan, tmp_path, ROWS, batch_size=4)
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, optimizer in resumed.optimizers.items():
        for one, other in zip(optimizer.variables, whole.optimizers[name].variables, strict=True):
            np.testing.assert_array_equal(*map(ops.convert_to_numpy, (one.value, other.value)))


@pytest.mark.skipif(IS_JAX, reason="On JAX a step is given the variables of one optimizer.")
def test_a_resume_with_other_optimizers_is_refused_by_name(tmp_path):
    Trainer(make_gan, checkpoint_dir=tmp_path).fit(ROWS, batch_size=4, verbose=0)
    model = make_gan()
    model.third = keras.optimizers.SGD()
    again = Trainer(model, checkpoint_dir=tmp_path)
    with pytest.raises(InvalidInputError, match=r"'maker'\]\"\] beside .* has .*'third'\]"):
        again.fit(ROWS, batch_size=4, epochs=2, verbose=0, resume=True)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Tracing builds them elsewhere.")
def test_a_search_asks_for_optimizers_that_are_built():
    with pytest.raises(InvalidInputError, match=r"\['critic'\]\" of .* is not built yet"):
        Trainer(make_gan).find_learning_rate(ROWS, batch_size=4)


def test_a_model_that_takes_its_batch_apart_trains_and_resumes(tmp_path):
    history = Trainer(make_embedding, seed=3).fit(Batches(), epochs=8, verbose=0).history
    assert set(history) == {"loss", "accuracy"}
    assert history["loss"][-1] < history["loss"][0]
    if keras.backend.backend() == "torch":  # Where its metrics are made by the first step.
        return
    resumed, whole = train_killed_and_whole(make_embedding, tmp_path, Batches())
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

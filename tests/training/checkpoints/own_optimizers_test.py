import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from tests.oracles.own_step import apply, train_killed_and_whole

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(16, 8)).astype("float32")
IS_JAX = keras.backend.backend() == "jax"


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


@pytest.mark.skipif(IS_JAX, reason="On JAX a step is given the variables of one optimizer.")
def test_the_two_optimizers_of_a_gan_are_in_its_checkpoints(tmp_path):
    resumed, whole = train_killed_and_whole(make_gan, tmp_path, ROWS, batch_size=4)
    for received, expected in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    for name, optimizer in resumed.optimizers.items():
        for received, expected in zip(
            optimizer.variables, whole.optimizers[name].variables, strict=True
        ):
            np.testing.assert_array_equal(
                *map(ops.convert_to_numpy, (received.value, expected.value))
            )


@pytest.mark.torch_alone
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

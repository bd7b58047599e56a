import threading

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.parameter_server.pickled_trainer import (
    as_arrays,
    pickle_trainer,
    unpickle_trainer,
)

pytest.importorskip("ray", reason="tox -e ray has it.")

STEP = {"micro_batches": 1}


def make_classes():
    """Returns classes that another process can't import."""

    class Doubled(keras.layers.Layer):
        def __init__(self, units, **options):
            super().__init__(**options)
            self.units = units
            self.inner = keras.layers.Dense(units)

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return 2.0 * self.inner(x)

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    class Own(Trainer):
        penalty = 0.5

        def train_step(self, x, y=None, sample_weight=None):
            return self.penalty * keras.ops.mean(self.model(x))

    return Doubled, Own


def own_loss(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred))


def test_a_model_of_one_s_own_classes_arrives():
    doubled, own_trainer = make_classes()
    model = keras.Sequential([keras.Input((3,)), doubled(2, name="twice")])
    trainer = own_trainer(
        model,
        optimizer="adam",
        loss=lambda y_true, y_pred: 2.0 * own_loss(y_true, y_pred),
        metrics=["mae", keras.metrics.MeanSquaredError(name="square")],
    )
    trainer.limit = 7
    arrived, step = unpickle_trainer(pickle_trainer(trainer, None, STEP))
    assert step == STEP
    assert (arrived.limit, arrived.penalty) == (7, 0.5)
    assert arrived.model is not model
    assert arrived.model.layers[0].name == "twice"
    for arrived_variable, variable in zip(arrived.model.variables, model.variables, strict=True):
        arrived_variable.assign(np.array(keras.ops.convert_to_numpy(variable.value)))
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(arrived.model.predict(x), model.predict(x))
    losses = [keras.ops.convert_to_numpy(owner.train_step(x)) for owner in (arrived, trainer)]
    np.testing.assert_array_equal(*losses)
    assert len(arrived.model.evaluate(x, np.zeros((2, 2)), verbose=0)) == 3


def test_a_model_that_only_its_function_can_build_arrives():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(2)

        def call(self, x):
            return self.inner(x)

    trainer = Trainer(Subclassed, optimizer="sgd", loss="mse")
    arrived, _ = unpickle_trainer(pickle_trainer(trainer, Subclassed, STEP))
    assert arrived.model(np.ones((1, 3))).shape == (1, 2)


def test_layers_of_the_model_that_a_trainer_holds_are_the_model_s_there_too():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    trainer.encoder = model.layers[0]
    trainer.teacher = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    arrived, _ = unpickle_trainer(pickle_trainer(trainer, None, STEP))
    assert arrived.encoder is arrived.model.layers[0]
    np.testing.assert_array_equal(
        arrived.teacher.get_weights()[0], trainer.teacher.get_weights()[0]
    )


def test_what_a_function_draws_by_the_seed_is_drawn_again():
    def build():
        inputs = keras.Input((3,))
        return keras.Model(inputs, inputs * keras.random.normal((3,)))  # No variable.

    trainer = Trainer(build, optimizer="sgd", loss="mse", seed=7)
    packed = pickle_trainer(trainer, build, STEP)
    keras.utils.set_random_seed(1)
    arrived, _ = unpickle_trainer(packed)
    x = np.ones((1, 3), "float32")
    np.testing.assert_array_equal(arrived.model.predict(x), trainer.model.predict(x))


def test_a_recorded_trainer_arrives_without_its_record(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer="sgd", loss="mse", run_record=tmp_path / "run.sqlite")
    trainer._recorder.lock = threading.Lock()  # The record of a running training has one.
    other, _ = unpickle_trainer(pickle_trainer(trainer, None, STEP))
    assert other.model.count_params() == model.count_params()


@pytest.mark.parametrize("owner", ["trainer", "model"])
def test_what_can_not_be_pickled_is_said(owner):
    lock = threading.Lock()

    def build():
        assert lock is not None
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])

    trainer = Trainer(build, optimizer="sgd", loss="mse", seed=0)
    if owner == "trainer":
        trainer.lock = lock
    named = "the Trainer" if owner == "trainer" else "model 'sequential"
    with pytest.raises(InvalidInputError, match=f"Workers get {named}.* by pickle, and that fails"):
        pickle_trainer(trainer, None if owner == "trainer" else build, STEP)


def test_a_batch_travels_as_arrays():
    batch = (keras.ops.ones((2, 3)), {"a": np.zeros(2), "b": None})
    x, y = as_arrays(batch)
    assert isinstance(x, np.ndarray)
    np.testing.assert_array_equal(x, np.ones((2, 3)))
    assert y["a"] is batch[1]["a"]
    assert y["b"] is None

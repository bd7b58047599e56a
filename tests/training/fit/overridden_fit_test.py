"""Models that override `fit` and its like, as KerasHub's do to preprocess inside."""

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer

TEXTS = [f"{'ab' * (number % 7)} {number % 3}" for number in range(20)]
LABELS = np.arange(20.0) % 3


@keras.saving.register_keras_serializable("overridden_fit_test")
class Reader(keras.Model):
    """Takes texts, and hands numbers on to Keras."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scores = keras.layers.Dense(1)
        self.calls = []

    def call(self, inputs):
        return self.scores(inputs)

    def read(self, texts):
        counts = [[text.count(letter) for letter in "ab12"] for text in texts]
        return np.array(counts, "float32")

    def fit(self, x, y=None, validation_data=None, **options):
        self.calls.append("begin")
        try:
            if validation_data is not None:
                validation_data = (self.read(validation_data[0]), validation_data[1])
            return super().fit(self.read(x), y, validation_data=validation_data, **options)
        finally:
            self.calls.append("end")

    def evaluate(self, x, y=None, **options):
        return super().evaluate(x if isinstance(x, np.ndarray) else self.read(x), y, **options)

    def predict(self, x, **options):
        return super().predict(self.read(x), **options)


def make_model():
    keras.utils.set_random_seed(3)
    model = Reader()
    model(np.zeros((1, 4), "float32"))
    return model


def make(model=None, **arguments):
    arguments = {"optimizer": keras.optimizers.Adam(0.1), "loss": "mse", "seed": 3, **arguments}
    return Trainer(model or make_model(), **arguments)


def assert_same(model, reference):
    for received, expected in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


OPTIONS = {"batch_size": 4, "shuffle": False, "verbose": 0}


def test_an_overridden_fit_trains_as_in_keras():
    by_keras = make_model()
    by_keras.compile(keras.optimizers.Adam(0.1), "mse")
    expected = by_keras.fit(
        TEXTS, LABELS, epochs=2, validation_data=(TEXTS[:6], LABELS[:6]), **OPTIONS
    )
    trainer = make()
    history = trainer.fit(
        TEXTS, LABELS, epochs=2, validation_data=(TEXTS[:6], LABELS[:6]), **OPTIONS
    )
    assert set(history.history) == {"loss", "val_loss"}
    for name, values in history.history.items():
        np.testing.assert_allclose(values, expected.history[name], rtol=1e-4)
    assert_same(trainer.model, by_keras)
    assert trainer.model.calls == ["begin", "end"]
    assert type(trainer.model) is Reader
    np.testing.assert_allclose(trainer.predict(TEXTS), by_keras.predict(TEXTS, verbose=0), 1e-4)
    np.testing.assert_allclose(
        trainer.evaluate(TEXTS, LABELS, verbose=0),
        by_keras.evaluate(TEXTS, LABELS, verbose=0),
        rtol=1e-4,
    )


def test_a_training_with_checkpoints_resumes(tmp_path):
    whole = make(checkpoint_dir=tmp_path / "whole")
    whole.fit(TEXTS, LABELS, epochs=3, batch_size=4, verbose=0)
    folder = tmp_path / "cut"
    make(checkpoint_dir=folder).fit(TEXTS, LABELS, epochs=1, batch_size=4, verbose=0)
    again = make(checkpoint_dir=folder)
    again.fit(TEXTS, LABELS, epochs=3, batch_size=4, verbose=0, resume=True)
    for received, expected in zip(
        again.model.get_weights(), whole.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(received, expected)


def test_steps_are_those_of_fit():
    trained = make()
    trained.fit(TEXTS, LABELS, **OPTIONS)
    by_steps = make()
    numbers = [step.number for step in by_steps.steps(TEXTS, LABELS, batch_size=4, shuffle=False)]
    assert numbers == [0, 1, 2, 3, 4]
    assert_same(by_steps.model, trained.model)


def test_searches_use_the_preprocessed_data():
    trainer = make()
    trainer.find_learning_rate(TEXTS, LABELS, batch_size=4, num_steps=10)
    assert trainer.measure_memory(TEXTS, LABELS, batch_size=4).total > 0


def test_callbacks_see_the_models_own_class(tmp_path):
    """A file that one writes can be read again."""
    trainer = make()
    writer = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    trainer.fit(TEXTS, LABELS, callbacks=[writer], **OPTIONS)
    read = keras.saving.load_model(tmp_path / "model.keras")
    assert type(read) is Reader
    assert_same(read, trainer.model)


class Silent(Reader):
    """Has no arguments but the data, and trains by two calls."""

    def fit(self, x, y):
        super().fit(x, y, verbose=0)
        return super().fit(x, y, epochs=2, verbose=0)


@pytest.mark.torch_alone
def test_arguments_with_defaults_are_not_passed():
    model = Silent()
    history = make(model).fit(TEXTS, LABELS)
    assert len(history.history["loss"]) == 2
    assert model.calls == ["begin", "end"] * 2


class Alone(keras.Sequential):
    def fit(self, x, y, **options):
        return "nothing"


@pytest.mark.parametrize(
    "train", [Trainer.fit, lambda *fit_arguments: list(Trainer.steps(*fit_arguments))]
)
def test_a_fit_without_super_fit_is_an_error(train):
    model = Alone([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(InvalidInputError, match=r"of 'Alone' has not called super\(\)\.fit"):
        train(make(model), np.ones((4, 2)), np.ones((4, 1)))


@pytest.mark.torch_alone
def test_a_search_of_batch_sizes_takes_texts():
    for texts in (TEXTS, np.array(TEXTS)):
        search = make().find_batch_size(texts, LABELS, min_batch_size=2, max_batch_size=4)
        assert list(search.batch_sizes) == [2, 4]

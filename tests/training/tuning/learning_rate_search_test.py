import sys

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.training import LearningRateSearch, Trainer
from keras_deepseek.training.tuning.learning_rate_search import _result

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 8)).astype("float32")
Y = (X @ RNG.normal(size=(8, 3))).argmax(axis=1)


def make_trainer(optimizer=None, **options):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    return Trainer(
        model,
        optimizer=optimizer or keras.optimizers.SGD(0.5, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )


@pytest.mark.parametrize("precision", [None, "float16"])
def test_the_rate_that_is_found_trains_and_the_search_left_no_trace(precision):
    trainer = make_trainer(precision=precision, seed=1)
    called = []
    trainer.add_callback(keras.callbacks.LambdaCallback(on_train_begin=called.append))
    trainer.model.build((None, 8))
    old_weights = trainer.model.get_weights()
    search = trainer.find_learning_rate(
        X, Y, batch_size=16, min_learning_rate=1e-4, max_learning_rate=1e4
    )
    assert called == []
    assert len(search.rates) == len(search.losses) == len(search.raw_losses) < 100
    assert 1e-3 < search.suggestion < 10
    for received, expected in zip(trainer.model.get_weights(), old_weights, strict=True):
        np.testing.assert_array_equal(received, expected)
    optimizer = trainer.model.optimizer
    assert int(optimizer.iterations) == 0
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == 0.5
    optimizer.learning_rate = search.suggestion
    losses = trainer.fit(X, Y, batch_size=16, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_a_generator_is_searched_with_to_its_end():
    with pytest.warns(UserWarning, match="has ended after 12 of 30 steps"):
        search = make_trainer().find_learning_rate(
            ((X[:16], Y[:16]) for _ in range(12)), num_steps=30, min_learning_rate=1e-3
        )
    assert len(search.rates) == 12
    assert search.rates[1] / search.rates[0] == pytest.approx(1e4 ** (1 / 29))


def test_the_suggestion_is_where_the_loss_falls_the_steepest():
    rates = list(np.geomspace(1e-6, 1.0, 61))
    losses = [2.0 - 1.0 / (1 + (1e-3 / rate) ** 2) for rate in rates]
    losses[-10:] = np.linspace(1.0, 9.0, 10)
    search = _result(rates, losses)
    assert search.suggestion == pytest.approx(1e-3, rel=0.3)
    assert search.losses[0] == pytest.approx(2.0, abs=1e-2)


@pytest.mark.parametrize(
    "losses",
    [
        [1.0] * 50,
        list(np.linspace(1, 2, 50)),
        list(1 + 0.1 * np.random.default_rng(2).normal(size=50)),
    ],
)
def test_a_loss_that_does_not_fall_suggests_nothing(losses):
    assert _result(list(np.geomspace(1e-6, 1.0, len(losses))), losses).suggestion is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_learning_rate": 0.0},
        {"min_learning_rate": 2.0, "max_learning_rate": 1.0},
        {"num_steps": 3},
    ],
)
def test_wrong_numbers_are_refused(arguments):
    with pytest.raises(InvalidInputError):
        make_trainer().find_learning_rate(X, Y, **arguments)


def test_a_first_loss_of_nan_is_an_error():
    with pytest.raises(InvalidInputError, match="loss of the first step is nan"):
        make_trainer().find_learning_rate(np.nan * X, Y)


def test_an_optimizer_with_a_schedule_is_refused():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    with pytest.raises(InvalidInputError, match="has a schedule as its learning_rate"):
        make_trainer(keras.optimizers.SGD(schedule)).find_learning_rate(X, Y)


def test_a_step_that_logs_no_loss_is_refused():
    class Odd(keras.Sequential):
        def train_step(self, *arguments):
            logs = super().train_step(*arguments)
            if isinstance(logs, tuple):
                return {"cost": logs[0]["loss"]}, logs[1]
            return {"cost": logs["loss"]}

    model = Odd([keras.Input((8,)), keras.layers.Dense(3)])
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    with pytest.raises(InvalidInputError, match="logs no 'loss'"):
        trainer.find_learning_rate(X, X[:, :3])


SEARCH = LearningRateSearch([1e-3, 1e-2, 1e-1], [2.0, 1.0, 3.0], [2.1, 0.9, 3.0], 1e-2)


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `pictures` is not installed")
    SEARCH.save_picture(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    SEARCH.save_picture(tmp_path / "rates.svg")
    assert "</svg>" in (tmp_path / "rates.svg").read_text(encoding="utf-8")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[pictures\]"):
        SEARCH.save_picture(tmp_path / "rates.png")


@pytest.mark.parametrize("seed", [3, 17, 35, 50, 53])
def test_noise_before_the_loss_falls_is_not_suggested(seed):
    rates = np.geomspace(1e-7, 10.0, 100)
    losses = 1.1 - 0.25 / (1 + (1e-2 / rates) ** 1.5)
    losses[85:] += np.linspace(0, 3, 15)
    losses += np.random.default_rng(seed).normal(scale=0.15, size=100)
    assert 3e-4 < _result(list(rates), list(losses)).suggestion < 1.0


def test_nan_in_the_data_is_found_in_the_weights():
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = Trainer(model, optimizer="sgd", loss=loss)
    with pytest.raises(InvalidInputError, match=r"first step.*look for NaN in the inputs"):
        trainer.find_learning_rate(X * np.nan, Y)

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.training import Trainer

if keras.backend.backend() != "torch":
    pytest.skip("Only on PyTorch, layers run a loop in Python.", allow_module_level=True)

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(16, 6, 3)).astype("float32"), RANDOM.normal(size=(16, 1))
X[:, 4:] *= RANDOM.integers(0, 2, (16, 1, 1))


def make_model(layer_class=layers.SimpleRNN, **options):
    keras.utils.set_random_seed(0)
    first, second = layer_class(4, return_sequences=True, **options), layer_class(4)
    steps = [keras.Input((6, 3)), layers.Masking(), first, layers.Bidirectional(second)]
    return keras.Sequential([*steps, layers.Dense(1)])


@pytest.fixture
def cell_calls(monkeypatch):
    """Returns a list with an item for each step that Keras's loop computes."""
    calls, original = [], layers.SimpleRNNCell.call

    def call(self, *arguments, **options):
        calls.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(layers.SimpleRNNCell, "call", call)
    return calls


@pytest.mark.parametrize("layer_class", [layers.LSTM, layers.GRU, layers.SimpleRNN])
@pytest.mark.parametrize("options", [{}, {"remat": True}], ids=str)
def test_a_training_is_that_of_keras(layer_class, options):
    model = make_model(layer_class, dropout=0.3, seed=1)
    model.compile("adam", "mse")
    expected = model.fit(X, Y, 16, epochs=4, verbose=0, shuffle=False).history["loss"]
    same = make_model(layer_class, dropout=0.3, seed=1)
    trainer = Trainer(same, optimizer="adam", loss="mse", **options)
    history = trainer.fit(X, Y, 16, epochs=4, verbose=0, shuffle=False).history["loss"]
    np.testing.assert_allclose(history, expected, rtol=1e-5)


def test_only_the_first_batch_of_a_shape_runs_the_loop(cell_calls):
    trainer = Trainer(make_model(), optimizer="adam", loss="mse")
    validation = {"validation_data": (X[:8], Y[:8])}
    trainer.fit(X, Y, 8, verbose=0, **validation)
    trainer.evaluate(X, Y, 8, verbose=0)
    expected = trainer.model.predict(X, 8, verbose=0)
    cell_calls.clear()
    np.testing.assert_allclose(trainer.predict(X, 8, verbose=0), expected, atol=1e-6)
    trainer.fit(X, Y, 8, verbose=0, **validation)
    trainer.evaluate(X, Y, 8, verbose=0)
    assert not cell_calls
    for _ in trainer.steps(X, Y, 8):
        assert not cell_calls
        trainer.model(X)  # Between two steps, the model is Keras's alone.
        assert cell_calls
        cell_calls.clear()


def test_run_eagerly_runs_the_loop_of_keras(cell_calls):
    trainer = Trainer(make_model(), optimizer="adam", loss="mse")
    trainer.model.run_eagerly = True
    for _ in range(2):
        cell_calls.clear()
        trainer.fit(X, Y, verbose=0)
        assert cell_calls

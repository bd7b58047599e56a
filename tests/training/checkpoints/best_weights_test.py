"""The best checkpoint of a training: through the trainer, from its folder, exported and served."""

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.cli import main
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.training import Trainer, load_best

X = np.eye(3, dtype="float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


class Weights(keras.callbacks.Callback):
    """Keeps the weights, their averages and the validation's loss of each epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def on_epoch_end(self, epoch, logs=None):
        weights = [keras.ops.convert_to_numpy(value) for value in self.model.variables]
        averages = [
            keras.ops.convert_to_numpy(variable)
            for variable in self.model.optimizer.variables
            if variable.path.endswith("_average")
        ]
        self.epochs.append((logs["val_loss"], weights, averages))


def build():
    """Its outputs for `X` are its weights, to the bit."""
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])


def make(folder, *callbacks, keep_best=("val_loss", "min"), **options):
    optimizer = keras.optimizers.SGD(0.4, momentum=0.9, use_ema=True, ema_momentum=0.5)
    options |= {"checkpoint_dir": folder, "keep_best": keep_best, "seed": 4}
    return Trainer(build, optimizer=optimizer, loss="mse", callbacks=callbacks, **options)


def fit(trainer, epochs=30, **options):
    data = {"batch_size": 1, "validation_data": (X, Y), "verbose": 0, "epochs": epochs}
    return trainer.fit(X, Y, **data, **options)


def is_equal(weights, others):
    return all(np.array_equal(*pair) for pair in zip(weights, others, strict=True))


def test_the_best_of_30_checkpoints_is_loaded_and_resumed(tmp_path):
    seen = Weights()
    trainer = make(tmp_path, seen)
    history = fit(trainer).history["val_loss"]
    best = int(np.argmin(history))
    assert best < 28  # The momentum swings, so the best epoch is not one of the newest.
    _, weights, averages = seen.epochs[best]
    assert trainer.load_best() == 3 * (best + 1)
    assert is_equal(trainer.model.get_weights(), weights)
    trainer.load_best(use_ema=True)
    assert is_equal(trainer.model.get_weights(), averages)

    model = build()
    assert load_best(model, tmp_path) == 3 * (best + 1)
    assert is_equal(model.get_weights(), weights)
    load_best(model, tmp_path, use_ema=True)
    assert is_equal(model.get_weights(), averages)

    again = make(tmp_path)
    assert again.resume(step="best") == 3 * (best + 1)
    assert is_equal(again.model.get_weights(), weights)
    assert CheckpointFolder(tmp_path).latest().step == 90  # Nothing is removed yet.
    np.testing.assert_array_equal(fit(again).history["val_loss"], history)


@pytest.mark.torch_alone
def test_keras_s_callback_makes_the_best_that_of_the_averages(tmp_path):
    seen = Weights()
    fit(make(tmp_path, seen, keras.callbacks.SwapEMAWeights()), 10)
    model = build()
    model.compile(loss="mse")
    load_best(model, tmp_path, use_ema=True)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(min(row[0] for row in seen.epochs))


@pytest.mark.torch_alone
def test_where_nothing_was_kept_as_the_best_nothing_is_lost(tmp_path):
    trainer = make(tmp_path, keep_best=None)
    fit(trainer, 2)
    weights = trainer.model.get_weights()
    for call in (trainer.load_best, lambda: trainer.resume(step="best")):
        with pytest.raises(InvalidInputError, match=r"was kept as the best: train with Trainer\("):
            call()
    with pytest.raises(InvalidInputError, match='`step` must be "best" or None; received 3'):
        trainer.resume(step=3)
    with pytest.raises(InvalidInputError, match="was kept as the best"):
        load_best(build(), tmp_path)
    assert is_equal(trainer.model.get_weights(), weights)
    assert CheckpointFolder(tmp_path).steps() == [3, 6]
    with pytest.raises(InvalidInputError, match="name the folder of the checkpoints"):
        Trainer(build(), optimizer="sgd", loss="mse").load_best()


@pytest.mark.torch_alone
def test_weights_that_do_not_fit_are_refused(tmp_path):
    trainer = Trainer(
        build, optimizer="sgd", loss="mse", checkpoint_dir=tmp_path, keep_best=("loss", "max")
    )
    trainer.fit(X, Y, verbose=0)
    with pytest.raises(InvalidInputError, match="the optimizer of this training had none"):
        load_best(build(), tmp_path, use_ema=True)
    with pytest.raises(InvalidInputError, match="is not built yet and has no weights"):
        load_best(keras.Sequential([keras.layers.Dense(1)]), tmp_path)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    with pytest.raises(InvalidInputError, match=r"the checkpoint has .* there, float32 \(3, 1\)"):
        load_best(other, tmp_path)


@pytest.mark.nightly
def test_the_best_is_exported_and_served_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build().save("model.keras")
    trainer = make("runs")
    fit(trainer)
    expected = {}
    for use_ema in (False, True):
        trainer.load_best(use_ema=use_ema)
        expected[use_ema] = trainer.model.get_weights()[0]
        flags = ["--use-ema"] if use_ema else []
        out = f"out-{use_ema}"
        assert not main(
            ["export", "model.keras", "--best-of", "runs", *flags, "--format", "onnx", "-o", out]
        )
        with ServingEngine(out) as engine:
            np.testing.assert_array_equal(engine.predict(X), expected[use_ema])
        with ServingEngine(trainer.model) as engine:
            np.testing.assert_array_equal(engine.predict(X), expected[use_ema])
    assert not np.array_equal(expected[False], expected[True])

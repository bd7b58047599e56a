import signal
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import TensorBoardEvents
from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.training import Trainer
from tests.oracles.event_reader import read_scalars
from tests.oracles.interruption import EndAt, KilledError

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def fit(model, *callbacks, **options):
    options = {"batch_size": 4, "epochs": 2, "verbose": 0, **options}
    return model.fit(X, Y, callbacks=list(callbacks), **options)


def steps(folder, tag):
    return [step for step, _ in read_scalars(folder)[tag]]


def test_runs_and_tags_are_those_of_keras(tmp_path):
    history = fit(build(), TensorBoardEvents(tmp_path), validation_data=(X, Y)).history
    train, validation = read_scalars(tmp_path / "train"), read_scalars(tmp_path / "validation")
    assert sorted(train) == ["batch_loss", "epoch_learning_rate", "epoch_loss"]
    assert sorted(validation) == ["epoch_loss", "evaluation_loss_vs_iterations"]
    assert [step for step, _ in train["batch_loss"]] == [1, 2, 3, 4, 5, 6]
    assert train["epoch_learning_rate"] == [(0, pytest.approx(0.01)), (1, pytest.approx(0.01))]
    for scalars, name in ((train, "loss"), (validation, "val_loss")):
        assert [step for step, _ in scalars["epoch_loss"]] == [0, 1]
        np.testing.assert_allclose(
            [value for _, value in scalars["epoch_loss"]], history[name], rtol=1e-6
        )
    assert [step for step, _ in validation["evaluation_loss_vs_iterations"]] == [3, 6]


def test_they_are_what_keras_itself_writes(tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("tensorflow")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    theirs = keras.callbacks.TensorBoard(tmp_path / "keras", update_freq="batch", write_graph=False)
    fit(build(), TensorBoardEvents(tmp_path / "ours"), theirs, validation_data=(X, Y))
    for run in ("train", "validation"):
        keras_events = accumulator.EventAccumulator(str(tmp_path / "keras" / run)).Reload()
        tags = keras_events.Tags()["tensors"]
        assert sorted(read_scalars(tmp_path / "ours" / run)) == sorted(tags)
        for tag in tags:
            assert [event.step for event in keras_events.Tensors(tag)] == steps(
                tmp_path / "ours" / run, tag
            )


def test_epochs_alone(tmp_path):
    fit(build(), TensorBoardEvents(tmp_path, every=0))
    assert sorted(read_scalars(tmp_path / "train")) == ["epoch_learning_rate", "epoch_loss"]


def test_an_earlier_run_is_not_mixed_with(tmp_path):
    fit(build(), TensorBoardEvents(tmp_path))
    with pytest.raises(InvalidInputError, match="holds an earlier run"):
        fit(build(), TensorBoardEvents(tmp_path))
    fit(build(), TensorBoardEvents(tmp_path, resume=True), epochs=1)
    assert steps(tmp_path / "train", "batch_loss") == [1, 2, 3]
    assert steps(tmp_path / "train", "epoch_loss") == [0]


def test_a_second_fit_goes_on_counting(tmp_path):
    model, callback = build(), TensorBoardEvents(tmp_path)
    fit(model, callback)
    fit(model, callback, epochs=3, initial_epoch=2)
    assert steps(tmp_path / "train", "batch_loss") == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert steps(tmp_path / "train", "epoch_loss") == [0, 1, 2]


@pytest.mark.parametrize("end", [(3, KilledError), (5, KilledError), (4, signal.SIGTERM)])
def test_a_training_that_is_resumed_has_each_event_once(tmp_path, end):
    def train(name, *further_callbacks):
        folder = tmp_path / name
        trainer = Trainer(build, checkpoint_dir=folder / "checkpoints", checkpoint_every=2, seed=1)
        callbacks = [TensorBoardEvents(folder / "events"), *further_callbacks]
        options = {"epochs": 3, "batch_size": 4, "verbose": 0, "validation_data": (X, Y)}
        trainer.fit(X, Y, resume=True, callbacks=callbacks, **options)

    train("left_alone")
    with pytest.raises((KilledError, SystemExit)):
        train("ended", EndAt(*end))
    train("ended")
    for run in ("train", "validation"):
        expected = read_scalars(tmp_path / "left_alone" / "events" / run)
        assert read_scalars(tmp_path / "ended" / "events" / run) == expected


def test_without_tensorboardx_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'keras_deepseek\[tensorboard\]'"):
        TensorBoardEvents(tmp_path)

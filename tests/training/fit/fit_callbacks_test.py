import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import MetricsLog, ProgressDisplay
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.fit.fit_callbacks import prepared_callbacks

X, Y = np.ones((64, 4), "float32"), np.ones((64, 1), "float32")


def build():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_progress_is_shown_by_its_own_display(capsys):
    trainer = Trainer(build())
    trainer.fit(X, Y, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["Epoch 1/2 2/2", "Epoch 2/2 2/2"]
    trainer.fit(X, Y, verbose=2)
    assert capsys.readouterr().out.startswith("Epoch 1/1 2/2  ")
    trainer.fit(X, Y, verbose=0)
    assert capsys.readouterr().out == ""
    with pytest.raises(InvalidInputError, match=r'`verbose` must be "auto", 0, 1 or 2'):
        trainer.fit(X, Y, verbose="loud")


def test_a_display_of_the_user_is_the_only_one(capsys):
    Trainer(build()).fit(X, Y, callbacks=[ProgressDisplay("lines")])
    assert capsys.readouterr().out.count("Epoch") == 1
    Trainer(build()).fit(X, Y, callbacks=[keras.callbacks.ProgbarLogger()], verbose=2)
    assert "2/2 - " in capsys.readouterr().out


def test_the_display_is_closed_after_an_error():
    class Failing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("power cut")

    class Display(ProgressDisplay):
        closed = 0

        def close(self):
            self.closed += 1

    display = Display()
    with pytest.raises(RuntimeError, match="power cut"):
        Trainer(build()).fit(X, Y, callbacks=[display, Failing()])
    assert display.closed == 2  # As it began, too.


def test_loggers_continue_while_a_training_is_resumed(tmp_path):
    first, second = MetricsLog(tmp_path / "a.jsonl"), MetricsLog(tmp_path / "b.jsonl", resume=True)
    for resume in (True, False):
        with prepared_callbacks([first, second], 0, resume=resume):
            assert first.resume == resume
            assert second.resume
        assert not first.resume
        assert second.resume


def test_logs_before_an_error_are_written(tmp_path):
    class Failing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise RuntimeError("power cut")

    log = MetricsLog(tmp_path / "log.jsonl")
    log._next_write = float("inf")  # Long after the error.
    with pytest.raises(RuntimeError, match="power cut"):
        Trainer(build()).fit(X, Y, batch_size=8, verbose=0, callbacks=[log, Failing()])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("mode", "monitor"), [("min", "val_loss"), ("max", "score")])
def test_nan_does_not_count_as_an_improvement(mode, monitor):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    x, y = np.ones((4, 2)), np.ones((4, 1))

    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = np.nan if epoch < 2 else 1.0 if epoch == 2 else 0.0

    stopping = keras.callbacks.EarlyStopping(monitor, mode=mode, patience=3)
    options = {"validation_data": (x, np.full((4, 1), np.nan)), "verbose": 0, "epochs": 9}
    history = trainer.fit(x, y, callbacks=[Score(), stopping], **options)
    assert len(history.epoch) == (4 if mode == "min" else 6)

import re

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import ProgressDisplay, progress_display
from keras_deepseek.errors import InvalidInputError

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")


class Screen:
    """Remembers what was shown."""

    def __init__(self, between=0.0):
        self.seconds_between_updates = between
        self.updates, self.lines, self.closed = [], [], 0

    def update(self, head, share, parts):
        self.updates.append((head, share, parts))

    def write(self, line):
        self.lines.append(line)

    def close(self):
        self.closed += 1


class Clock:
    """Each look at it takes so many seconds."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


@pytest.fixture(scope="module")
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


@pytest.fixture
def show(monkeypatch, model):
    def show(screen, *, seconds=0.01, x=X, y=Y, callbacks=(), **options):
        monkeypatch.setattr(progress_display, "choose_screen", lambda style: screen)
        display = ProgressDisplay(clock=Clock(seconds))
        model.fit(
            x,
            y,
            verbose=0,
            callbacks=[*callbacks, display],
            **{"batch_size": 4, "epochs": 2} | options,
        )
        return screen

    return show


def test_each_step_and_the_line_of_each_epoch(show):
    screen = show(Screen(), validation_data=(X, Y))
    heads = [head for head, _, _ in screen.updates]
    assert "validating" in heads[-1]
    steps = [head for head in heads if "validating" not in head]
    if keras.backend.backend() == "tensorflow":  # Keras calls from one thread there.
        assert steps == [f"Epoch {epoch}/2 {step}/3" for epoch in (1, 2) for step in (1, 2, 3)]
    assert screen.updates[0][1] in (1 / 3, 2 / 3, 1.0)
    assert len(screen.lines) == 2
    assert screen.lines[1].startswith("Epoch 2/2 3/3  ")
    for what in ("samples/s", "loss:", "mae:", "val_loss:", "learning_rate: 0.01", "memory:"):
        assert what in screen.lines[1]


def test_it_is_written_over_no_more_often_than_the_screen_takes(show):
    assert len(show(Screen(between=1e9)).updates) == 2  # The first of each epoch.


def go_through(screen, monkeypatch, steps, epochs, seconds, steps_per_epoch=None):
    """Goes through epochs, whose length Keras does not know, or knows."""
    monkeypatch.setattr(progress_display, "choose_screen", lambda style: screen)
    display = ProgressDisplay(clock=Clock(seconds))
    display.set_params({"epochs": epochs, "steps": steps_per_epoch})
    display.on_train_begin()
    for epoch in range(epochs):
        display.on_epoch_begin(epoch)
        for batch in range(steps):
            display.on_train_batch_end(batch, {})
        display.on_epoch_end(epoch, {})
    display.on_train_end()
    return screen


def test_how_long_it_will_take(monkeypatch):
    screen = go_through(Screen(), monkeypatch, steps=41, epochs=2, seconds=1.0, steps_per_epoch=41)
    estimates = [[part for part in parts if "ETA" in part] for _, _, parts in screen.updates]
    assert estimates[:2] == [[], ["ETA 39s, 1:20 in all"]]
    assert estimates[40] == ["ETA 0ms, 41s in all"]
    assert estimates[-2:] == [["ETA 1s"], ["ETA 0ms"]]


def test_data_of_unknown_length_have_a_length_after_the_first_epoch(monkeypatch):
    screen = go_through(Screen(), monkeypatch, steps=4, epochs=2, seconds=0.01)
    assert [share for _, share, _ in screen.updates] == [None] * 4 + [0.25, 0.5, 0.75, 1.0]
    assert screen.updates[0][0] == "Epoch 1/2 1"
    assert [line.split("  ")[0] for line in screen.lines] == ["Epoch 1/2 4/4", "Epoch 2/2 4/4"]


def test_plain_lines_of_data_of_unknown_length_come_more_and_more_seldom(monkeypatch):
    screen = go_through(Screen(between=None), monkeypatch, steps=400, epochs=1, seconds=2.0)
    assert len(screen.lines) == 4
    assert "None" not in "".join(screen.lines)


def test_several_steps_an_execution(monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("Keras on PyTorch runs one step an execution.")
    screen = Screen()
    monkeypatch.setattr(progress_display, "choose_screen", lambda style: screen)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=2)
    model.fit(X, Y, batch_size=3, verbose=0, callbacks=[ProgressDisplay()])
    assert screen.updates[-1][0] == "Epoch 1/1 4/4"
    assert screen.lines[0].startswith("Epoch 1/1 4/4  ")


def test_plain_lines_are_a_few_an_epoch(show):
    x, y = np.ones((400, 2), "float32"), np.ones((400, 1), "float32")
    screen = show(Screen(between=None), x=x, y=y, epochs=1, seconds=5.0)
    steps = [int(re.match(r"Epoch 1/1 (\d+)/100  ", line)[1]) for line in screen.lines]
    # Where Keras calls from several threads, a few may be late.
    np.testing.assert_allclose(steps, [25, 50, 75, 100], atol=15)
    short = show(Screen(between=None), x=x, y=y, epochs=1, seconds=0.01)
    assert [line.split("  ")[0] for line in short.lines] == ["Epoch 1/1 100/100"]


def test_what_is_printed_holds_no_carriage_return(model, capsys):
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[ProgressDisplay()])
    lines = capsys.readouterr().out.splitlines(keepends=True)
    assert len(lines) == 2
    assert lines[0].startswith("Epoch 1/2 1/1  ")
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_logs_of_other_callbacks_are_shown(show):
    class Adding(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            logs["tokens_per_second"] = 1e6

    screen = show(Screen(), callbacks=[Adding()])
    assert "1M tokens/s" in screen.updates[-1][2]


def test_an_evaluation_by_itself_is_none_of_its_business(show, model):
    display = ProgressDisplay()
    display._screen = Screen()
    model.evaluate(X, Y, verbose=0, callbacks=[display])
    assert display._screen.updates == []


def test_an_unknown_style_is_refused():
    with pytest.raises(InvalidInputError, match="did you mean 'lines'"):
        ProgressDisplay("line")

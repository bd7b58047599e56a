import random
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.callbacks.step_logger import StepLogger, numeric_logs
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from tests.oracles.interruption import EndAt, KilledError

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")


class Written(StepLogger):
    """Writes into a list, which stands for a file."""

    def __init__(self, rows=None, **options):
        super().__init__(**options)
        self.rows = [] if rows is None else rows
        self.opened = self.closed = 0

    def _open(self):
        self.opened += 1

    def _write(self, rows):
        self.rows.extend(rows)

    def _close(self):
        self.closed += 1

    def _last_step(self):
        return max((row.step for row in self.rows), default=None)

    def _discard_after(self, step):
        self.rows[:] = [row for row in self.rows if row.step <= step]

    @property
    def steps(self):
        return [row.step for row in self.rows if not row.ends_epoch]

    @property
    def epochs(self):
        return [(row.epoch, row.step) for row in self.rows if row.ends_epoch]


def build(**settings):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **settings)
    return model


def fit(model, *callbacks, **options):
    options = {"batch_size": 4, "verbose": 0, **options}
    return model.fit(X, Y, callbacks=list(callbacks), **options)


def test_steps_and_epochs_come_in_order_and_once():
    logger = Written()
    history = fit(build(), logger, epochs=2, validation_data=(X, Y)).history
    assert logger.steps == [1, 2, 3, 4, 5, 6]
    assert logger.epochs == [(0, 3), (1, 6)]
    assert [row.logs["val_loss"] for row in logger.rows if row.ends_epoch] == history["val_loss"]
    assert logger.opened == logger.closed == 1


def test_a_second_fit_goes_on_counting_and_another_model_begins_anew():
    logger, model = Written(), build()
    fit(model, logger)
    fit(model, logger)
    assert logger.steps == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InvalidInputError, match="holds an earlier run"):
        fit(build(), logger)
    assert logger.opened == logger.closed == 3


@pytest.mark.parametrize(("every", "steps"), [(0, []), (2, [2, 4, 6]), (4, [4])])
def test_every_so_many_steps(every, steps):
    logger = Written(every=every)
    fit(build(), logger, epochs=2)
    assert logger.steps == steps
    assert len(logger.epochs) == 2


def test_several_steps_an_execution_are_several_steps():
    if keras.backend.backend() == "torch":
        pytest.skip("Keras on PyTorch runs one step an execution.")
    logger = Written()
    fit(build(steps_per_execution=2), logger, batch_size=3, epochs=2)
    assert logger.steps == [2, 4, 6, 8]


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32))
def test_steps_that_come_out_of_order_are_written_in_order(an_execution, executions, seed):
    """Keras begins a step before it has told of the end of others, a few at a time."""
    logger, random_ = Written(), random.Random(seed)
    logger._is_open = True
    begun, running = list(range(executions)), []
    while begun or running:
        if begun and (not running or random_.random() < 0.5):
            first = begun.pop(0) * an_execution
            logger.on_train_batch_begin(first)
            running.append(first + an_execution - 1)
        else:
            logger.on_train_batch_end(running.pop(random_.randrange(len(running))), {"loss": 1.0})
            assert (
                logger._rows == [] or logger.rows == [] or logger._rows[0].step > logger.steps[-1]
            )
    logger.close()
    assert logger.steps == [(index + 1) * an_execution for index in range(executions)]


@pytest.mark.parametrize("end", [2, 3, 5, 8])
def test_a_training_that_is_resumed_writes_no_step_twice(tmp_path, end):
    def train(name, rows, *further_callbacks):
        trainer = Trainer(build, checkpoint_dir=tmp_path / name, checkpoint_every=2, seed=1)
        callbacks = [Written(rows), *further_callbacks]
        trainer.fit(X, Y, batch_size=4, epochs=3, verbose=0, resume=True, callbacks=callbacks)

    expected, rows = [], []
    train("left_alone", expected)
    with pytest.raises(KilledError):
        train("ended", rows, EndAt(end))
    assert rows  # Also what came after the last checkpoint.
    train("ended", rows)
    assert [row._replace(time=0) for row in rows] == [row._replace(time=0) for row in expected]


def test_one_that_is_new_in_a_resumed_training_knows_the_step(tmp_path):
    def train(*callbacks):
        trainer = Trainer(build, checkpoint_dir=tmp_path, checkpoint_every=2, seed=1)
        trainer.fit(X, Y, 4, 3, verbose=0, callbacks=list(callbacks), resume=True)

    with pytest.raises(KilledError):
        train(EndAt(6))
    logger = Written()
    train(logger)
    assert logger.steps == [5, 6, 7, 8, 9]
    assert logger.epochs == [(1, 6), (2, 9)]


SCRIPT = """
import keras, numpy as np, sys
from keras_deepseek.callbacks import RunRecorder
class Failing(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise RuntimeError("power cut")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
recorder = RunRecorder(sys.argv[1])
recorder._next_write = float("inf")
model.fit(np.ones((8, 2)), np.ones((8, 1)), 2, verbose=0, callbacks=[recorder, Failing()])
"""


def test_what_waits_is_written_where_an_error_ends_python(tmp_path):
    from keras_deepseek.artifacts.run_record import RunRecord

    path = tmp_path / "run.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path], check=False, capture_output=True, text=True
    )
    assert "power cut" in done.stderr
    with RunRecord(path) as record:
        assert [step for step, _ in record.scalars("loss")] == [1, 2, 3]


def test_numbers_are_those_of_numpy_too():
    logs = {"a": np.float32(0.5), "b": np.int64(3), "c": np.array(2.0), "d": "text", "e": [1.0]}
    assert numeric_logs(logs) == {"a": 0.5, "b": 3.0, "c": 2.0}


def test_one_that_can_not_be_written_is_closed_and_so_are_the_others():
    class Full(Written):
        def _write(self, rows):
            raise OSError(28, "No space left on device")

    full, other = Full(every=100), Written(every=100)
    trainer = Trainer(build(), callbacks=[other, full])
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(X, Y, verbose=0)
    assert full.closed == other.closed == 1
    assert other.epochs or other.rows == []

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks.experiment_logger import ExperimentLogger
from keras_deepseek.training import Trainer
from tests.oracles.interruption import EndAt, KilledError

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")


class Service:
    """Remembers runs, as one that is far away does."""

    def __init__(self):
        self.runs = {}

    def logger(self, run_id=None, **options):
        service = self

        class Logger(ExperimentLogger):
            def _start(self, config):
                run_id = self.run_id or f"run{len(service.runs)}"
                self.run = service.runs.setdefault(run_id, {"config": config, "rows": []})
                self.run["ended"] = None
                return run_id

            def _send(self, values):
                self.run["rows"] += [
                    (row.step, name, value)
                    for row, named in values
                    for name, value in named.items()
                ]

            def _finish(self, *, has_ended):
                self.run["ended"] = has_ended

            def _is_sent(self, row):
                kind = "epoch/" if row.ends_epoch else "batch/"
                rows = self.run["rows"]
                return any(step == row.step and name.startswith(kind) for step, name, _ in rows)

        return Logger(run_id=run_id, **{"config": None, "every": 1, **options})


def build():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="line")
    model.compile("sgd", "mse")
    return model


def fit(logger, **options):
    options = {"batch_size": 4, "epochs": 2, "verbose": 0, **options}
    return build().fit(X, Y, callbacks=[logger], **options).history


def test_logs_are_named_by_what_they_are_of():
    service = Service()
    history = fit(service.logger(config={"width": 64}), validation_data=(X, Y))
    (run,) = service.runs.values()
    assert [step for step, name, _ in run["rows"] if name == "batch/loss"] == [1, 2, 3, 4, 5, 6]
    validation_rows = [
        (step, value) for step, name, value in run["rows"] if name == "epoch/val_loss"
    ]
    assert validation_rows == list(zip([3, 6], history["val_loss"], strict=True))
    assert run["ended"] is True
    expected = {"model": "line", "parameters": 3, "optimizer": "SGD", "width": 64, "epochs": 2}
    assert expected.items() <= run["config"].items()


def test_a_training_that_is_resumed_goes_on_with_its_run(tmp_path):
    service = Service()

    def train(*further_callbacks):
        trainer = Trainer(build, checkpoint_dir=tmp_path, checkpoint_every=2, seed=1)
        callbacks = [service.logger(), *further_callbacks]
        trainer.fit(X, Y, 4, 2, verbose=0, callbacks=callbacks, resume=True)

    with pytest.raises(KilledError):
        train(EndAt(5))
    (run,) = service.runs.values()
    assert run["ended"] is False
    train()
    (run,) = service.runs.values()
    assert run["ended"] is True
    assert [step for step, name, _ in run["rows"] if name == "batch/loss"] == [1, 2, 3, 4, 5, 6]
    assert [step for step, name, _ in run["rows"] if name == "epoch/loss"] == [3, 6]

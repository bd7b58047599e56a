"""With a stand-in that has the calls of `wandb`; and with `wandb` itself where it is installed."""

import sys
import types

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import WandbLogger
from keras_deepseek.errors import MissingExtraError

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")


class Config(dict):
    def update(self, d, allow_val_change=None):
        super().update(d)


class Run:
    def __init__(self, id, config):  # noqa: A002 - the name is theirs.
        self.id, self.config, self.step = id, Config(config or {}), 0
        self.history, self.exit_code = {}, None

    def log(self, data, step=None, commit=None):
        assert step >= self.step
        self.step = step
        self.history.setdefault(step, {}).update(data)

    def finish(self, exit_code=None, quiet=None):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    def init(entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None):  # noqa: A002
        module.asked.append({"project": project, "name": name, "id": id, "resume": resume})
        return Run(id or "new", config)

    module = types.ModuleType("wandb")
    module.run, module.init, module.asked = None, init, []
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def fit(logger, **options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    started = []
    start = logger._start
    logger._start = lambda config: (start(config), started.append(logger._run))[0]
    model.fit(X, Y, 4, 2, verbose=0, validation_data=(X, Y), callbacks=[logger], **options)
    return started[0]


def test_a_run_is_started_and_finished(wandb):
    run = fit(WandbLogger("digits", name="first", config={"width": 64}))
    assert wandb.asked == [{"project": "digits", "name": "first", "id": None, "resume": None}]
    assert sorted(run.history) == [1, 2, 3, 4, 5, 6]
    assert sorted(run.history[2]) == ["batch/loss"]
    assert sorted(run.history[6]) == ["batch/loss", "epoch/epoch", "epoch/loss", "epoch/val_loss"]
    assert run.history[6]["epoch/epoch"] == 1
    assert run.config["width"] == 64
    assert run.exit_code == 0


def test_an_active_run_is_used_and_not_finished(wandb):
    wandb.run = Run("active", {})
    run = fit(WandbLogger())
    assert run is wandb.run
    assert wandb.asked == []
    assert run.config["optimizer"] == "SGD"
    assert run.exit_code is None


def test_a_run_that_is_gone_on_with_takes_no_earlier_step(wandb, monkeypatch):
    logger = WandbLogger(run_id="first")
    logger.set_state({"step": 0, "run_id": "second"})
    monkeypatch.setattr(Run, "step", 4, raising=False)
    original = Run.__init__

    def later(self, *arguments):
        original(self, *arguments)
        self.step = 4

    monkeypatch.setattr(Run, "__init__", later)
    run = fit(logger)
    assert wandb.asked[0]["id"] == "second"
    assert wandb.asked[0]["resume"] == "allow"
    assert sorted(run.history) == [4, 5, 6]


def test_without_wandb_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'keras_deepseek\[wandb\]'"):
        WandbLogger()


def test_wandb_itself(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")  # Or it takes what pytest has taken.
    fit(WandbLogger("digits", dir=str(tmp_path)))
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"epoch/val_loss" in written.read_bytes()

"""With a stand-in that has the calls of `mlflow`; with `mlflow` itself where it is installed."""

import sys
import types
from collections import namedtuple

import keras
import numpy as np
import pytest

from keras_deepseek.callbacks import MlflowLogger, experiment_logger
from keras_deepseek.errors import MissingExtraError

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")
Metric = namedtuple("Metric", "key value timestamp step")
Param = namedtuple("Param", "key value")


def named(**values):
    return types.SimpleNamespace(**values)


class Store:
    """What a server holds."""

    def __init__(self):
        self.experiments, self.runs, self.calls = {}, {}, 0

    def client(self, tracking_uri=None):
        self.tracking_uri = tracking_uri
        return self

    def get_experiment_by_name(self, name):
        experiment_id = self.experiments.get(name)
        return experiment_id and named(experiment_id=experiment_id)

    def create_experiment(self, name):
        return self.experiments.setdefault(name, str(len(self.experiments) + 1))

    def create_run(self, experiment_id, run_name=None):
        run = named(
            info=named(run_id=f"run{len(self.runs)}", experiment_id=experiment_id, name=run_name),
            params={},
            metrics=[],
            status="RUNNING",
        )
        self.runs[run.info.run_id] = run
        return run

    def get_run(self, run_id):
        names = {metric.key: metric.value for metric in self.runs[run_id].metrics}
        return named(data=named(metrics=names))

    def get_metric_history(self, run_id, key):
        return [metric for metric in self.runs[run_id].metrics if metric.key == key]

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(metrics) <= 1000
        self.calls += 1
        for param in params:
            assert self.runs[run_id].params.setdefault(param.key, param.value) == param.value
        self.runs[run_id].metrics.extend(metrics)

    def update_run(self, run_id, status=None):
        self.runs[run_id].status = status

    def set_terminated(self, run_id, status=None):
        self.runs[run_id].status = status


@pytest.fixture
def store(monkeypatch):
    store = Store()
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient, module.active_run = store.client, lambda: store.active
    entities.Metric, entities.Param = Metric, Param
    store.active = None
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return store


def fit(logger, **options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    options = {"batch_size": 4, "epochs": 2, "verbose": 0, **options}
    model.fit(X, Y, validation_data=(X, Y), callbacks=[logger], **options)


def steps(run, key):
    return [metric.step for metric in run.metrics if metric.key == key]


def test_a_run_is_made_and_finished(store):
    fit(MlflowLogger("digits", name="first", config={"width": 64}, tracking_uri="sqlite://"))
    assert store.tracking_uri == "sqlite://"
    (run,) = store.runs.values()
    assert (run.info.experiment_id, run.info.name) == (store.experiments["digits"], "first")
    assert run.params["width"] == "64"
    assert run.params["optimizer"] == "SGD"
    assert steps(run, "batch/loss") == [1, 2, 3, 4, 5, 6]
    assert steps(run, "epoch/val_loss") == [3, 6]
    assert 1.6e12 < run.metrics[0].timestamp < 1e13  # Milliseconds.
    assert run.status == "FINISHED"


def test_an_active_run_is_used_and_not_ended(store):
    store.active = store.create_run("0")
    fit(MlflowLogger())
    assert steps(store.active, "epoch/loss") == [3, 6]
    assert store.active.status == "RUNNING"
    assert len(store.runs) == 1


def test_a_run_that_is_gone_on_with_gets_no_step_twice(store):
    first = MlflowLogger("digits")
    fit(first, epochs=1)
    second = MlflowLogger("digits", run_id=first.run_id)
    fit(second)
    (run,) = store.runs.values()
    assert steps(run, "batch/loss") == [1, 2, 3, 4, 5, 6]
    assert steps(run, "epoch/loss") == [3, 6]


def test_an_error_marks_the_run_as_failed(store):
    logger = MlflowLogger()
    fit(logger)
    logger._is_open, logger._has_ended = True, False
    logger.close()
    assert store.runs["run0"].status == "FAILED"


def test_no_call_has_more_than_a_server_takes(store, monkeypatch):
    monkeypatch.setattr(experiment_logger, "_METRICS_A_CALL", 2)
    monkeypatch.setattr(MlflowLogger, "_longest_wait", 1e9)
    logger = MlflowLogger()
    logger._next_write = float("inf")
    fit(logger, epochs=1)
    assert store.calls == 1 + 3  # The parameters; 3 steps and 2 logs of the epoch.


def test_without_mlflow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'keras_deepseek\[mlflow\]'"):
        MlflowLogger()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_itself(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/runs.db"
    logger = MlflowLogger("digits", tracking_uri=uri)
    fit(logger)
    client = mlflow.MlflowClient(uri)
    assert client.get_run(logger.run_id).info.status == "FINISHED"
    history = client.get_metric_history(logger.run_id, "batch/loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]

import os
import signal
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    PeerLostError,
)
from keras_deepseek.training import ClusterSpec, ParameterServer, StepGuard, Trainer
from keras_deepseek.training.parameter_server.chief import Chief
from keras_deepseek.training.parameter_server.settings import resolve_settings

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="It runs on JAX and PyTorch."
)


@pytest.fixture
def needs_ray():
    pytest.importorskip("ray", reason="tox -e ray has it.")


def build():
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(10),
        ]
    )


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return (x / 16).astype("float32"), y


def make_trainer(strategy, model=None, **arguments):
    arguments = {
        "optimizer": keras.optimizers.Adam(2e-3),
        "loss": LOSS,
        "metrics": ["accuracy"],
        "seed": 3,
        **arguments,
    }
    return Trainer(model or build, distributed_strategy=strategy, **arguments)


class Kill(keras.callbacks.Callback):
    """Kills an actor after a batch of the first epoch, with SIGKILL."""

    def __init__(self, trainer, kind, at):
        super().__init__()
        self.trainer, self.kind, self.at, self.number = trainer, kind, at, None

    def on_train_batch_end(self, batch, logs=None):
        import ray

        if batch == self.at and self.number is None:
            actor = getattr(self.trainer._chief._actors, self.kind)[0]
            self.number = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
            os.kill(self.number, signal.SIGKILL)


def weights_of(model):
    return [keras.ops.convert_to_numpy(each.value) for each in model.variables]


@pytest.mark.usefixtures("needs_ray")
def test_a_bound_of_zero_has_the_numbers_of_one_process(digits):
    x, y = digits
    data = {"x": x[:300], "y": y[:300], "batch_size": 32, "epochs": 2, "verbose": 0}
    data["validation_data"] = (x[300:400], y[300:400])
    alone = make_trainer(None)
    expected = alone.fit(**data).history
    served = make_trainer(ParameterServer(num_workers=2, num_servers=2, staleness_bound=0))
    found = served.fit(**data).history
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert int(served.model.optimizer.iterations) == 20
    for one, other in zip(weights_of(served.model), weights_of(alone.model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("needs_ray")
def test_whoever_dies_each_update_counts_once_and_the_loss_is_that_of_one_process(digits):
    x, y = digits
    data = {"x": x, "y": y, "batch_size": 32, "epochs": 8, "verbose": 0}
    alone = make_trainer(None)
    alone.fit(**data)
    served = make_trainer(ParameterServer(num_workers=2, num_servers=2, snapshot_every=10))
    missed = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            missed.append(served._chief._actors.most_missed())

    killers = [Kill(served, "workers", at=5), Kill(served, "servers", at=20)]
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(batch)
    )
    served.fit(**data, callbacks=[*killers, record, Look()])
    assert all(killer.number for killer in killers)
    assert seen == list(range(57)) * 8
    assert int(served.model.optimizer.iterations) == 57 * 8
    assert max(missed) <= 8
    losses = [trainer.evaluate(x, y, verbose=0)[0] for trainer in (alone, served)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=0.005)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[ray\]"):
        make_trainer(ParameterServer(num_workers=2))


def test_one_process_alone_runs_the_script():
    settings = resolve_settings(ParameterServer(num_workers=2), {})
    cluster = ClusterSpec("parameter_server", 3, 0, coordinator="127.0.0.1:29500")
    with pytest.raises(InvalidInputError, match="2 workers and 1 servers by Ray; received world_s"):
        Chief(settings, cluster)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return {}


@pytest.mark.usefixtures("needs_ray")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"guard": StepGuard("skip")}, NotSupportedError, "can't train with `guard`"),
        ({"precision": "mixed_float16"}, NotSupportedError, "can't train with float16"),
        (
            {"model": lambda: OwnStep([keras.Input((64,)), keras.layers.Dense(10)])},
            InvalidInputError,
            "has a `train_step` of its own",
        ),
    ],
)
def test_what_would_wait_for_each_step_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make_trainer(ParameterServer(num_workers=2), **arguments)


@pytest.mark.usefixtures("needs_ray")
def test_an_address_that_nobody_answers_at_is_said(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**arguments):
        assert arguments["address"] == "127.0.0.1:1"
        raise ConnectionError("Nobody is there.")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(PeerLostError, match=r"no Ray cluster at '127\.0\.0\.1:1': Nobody"):
        make_trainer(ParameterServer(num_workers=2, address="127.0.0.1:1"))

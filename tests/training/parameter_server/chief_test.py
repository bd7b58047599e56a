import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek.errors import (
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
    PeerLostError,
)
from keras_deepseek.training import Muon, ParameterServer, StepGuard, Trainer
from tests.oracles.served_models import (
    build,
    build_encoder,
    make_optimizer,
    masked_words,
    weights_of,
)

IS_TENSORFLOW = keras.backend.backend() == "tensorflow"
on_ray = pytest.mark.skipif(IS_TENSORFLOW, reason="coordinator_engine_test.py is for TensorFlow.")


@pytest.fixture
def needs_ray():
    if IS_TENSORFLOW:
        pytest.skip("coordinator_engine_test.py is for TensorFlow.")
    pytest.importorskip("ray", reason="tox -e ray has it.")


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
            actor = getattr(self.trainer._cluster.chief.engine.actors, self.kind)[0]
            self.number = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
            os.kill(self.number, signal.SIGKILL)


@pytest.mark.usefixtures("needs_ray")
def test_a_bound_of_zero_has_the_numbers_of_one_process(digits, tmp_path):
    x, y = digits
    data = {"x": x[:300], "y": y[:300], "batch_size": 32, "epochs": 2, "verbose": 0}
    data["validation_data"] = (x[300:400], y[300:400])
    alone = make_trainer(None, checkpoint_dir=tmp_path / "alone")
    expected = alone.fit(**data).history
    strategy = ParameterServer(num_workers=2, num_servers=2, staleness_bound=0)
    served = make_trainer(strategy, checkpoint_dir=tmp_path / "served")  # In the same order.
    history = served.fit(**data).history
    assert set(history) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert int(served.model.optimizer.iterations) == 20
    for received, reference in zip(weights_of(served.model), weights_of(alone.model), strict=True):
        np.testing.assert_allclose(received, reference, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("needs_ray")
def test_whoever_dies_each_update_counts_once_and_the_loss_is_that_of_one_process(digits, tmp_path):
    x, y = digits
    data = {"x": x, "y": y, "batch_size": 32, "epochs": 4, "verbose": 0}
    alone = make_trainer(None, optimizer=make_optimizer(4 * 57), checkpoint_dir=tmp_path / "alone")
    alone.fit(**data)
    served = make_trainer(
        ParameterServer(num_workers=2, num_servers=2, staleness_bound=8, snapshot_every=10),
        optimizer=make_optimizer(4 * 57),
        checkpoint_dir=tmp_path / "served",
    )
    missed = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            missed.append(served._cluster.chief.engine.actors.most_missed())

    killers = [Kill(served, "workers", at=5), Kill(served, "servers", at=20)]
    batches = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batches.append(batch)
    )
    served.fit(**data, callbacks=[*killers, record, Look()])
    assert all(killer.number for killer in killers)
    assert batches == list(range(57)) * 4
    assert int(served.model.optimizer.iterations) == 57 * 4
    assert max(missed) <= 8
    losses = [trainer.evaluate(x, y, verbose=0)[0] for trainer in (alone, served)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.usefixtures("needs_ray")
def test_a_model_of_bert_s_shape_learns_as_in_one_process(tmp_path):
    x, y, weights = masked_words()
    names = ("x", "y", "sample_weight")
    training_data, held_out = (
        dict(zip(names, [array[part] for array in (x, y, weights)], strict=True))
        for part in (slice(640), slice(640, None))
    )
    losses = []
    for strategy in (None, ParameterServer(num_workers=2, num_servers=2)):
        trainer = make_trainer(
            strategy,
            build_encoder,
            optimizer=make_optimizer(120),
            metrics=None,
            gradient_clip=("global_norm", 1.0),
            checkpoint_dir=tmp_path / str(len(losses)),
        )
        trainer.fit(**training_data, batch_size=32, epochs=6, verbose=0)
        assert int(trainer.model.optimizer.iterations) == 120
        losses.append([trainer.evaluate(**data, verbose=0) for data in (training_data, held_out)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.usefixtures("needs_ray")
def test_a_training_that_was_stopped_goes_on_as_one_that_was_not(digits, tmp_path):
    x, y = digits[0][:300], digits[1][:300]
    data = {"x": x, "y": y, "batch_size": 32, "epochs": 2, "verbose": 0}
    expected = make_trainer(None, checkpoint_dir=tmp_path / "alone").fit(**data).history
    strategy = ParameterServer(num_workers=2, num_servers=2, staleness_bound=0)
    options = {"checkpoint_dir": tmp_path / "served", "checkpoint_every": 4}
    batches = []

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            batches.append(batch)
            if len(batches) == 13:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        make_trainer(strategy, **options).fit(**data, callbacks=Stop())
    assert ended.value.code == 0
    again = make_trainer(strategy, **options)
    history = again.fit(**data, resume=True).history
    assert 13 <= len(batches) < 20
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert int(again.model.optimizer.iterations) == 20


@pytest.mark.usefixtures("needs_ray")
def test_an_error_of_a_worker_is_that_of_the_training(digits):
    class Failing(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            raise ZeroDivisionError("The loss of this is none.")

    strategy = ParameterServer(num_workers=2, num_servers=2)
    trainer = Failing(build, optimizer="sgd", loss=LOSS, distributed_strategy=strategy)
    with pytest.raises(ZeroDivisionError, match="The loss of this is none") as raised:
        trainer.fit(digits[0], digits[1], verbose=0)
    assert any("It came from a worker" in note for note in raised.value.__notes__)
    with pytest.raises(NotSupportedError, match="several steps at a time"):
        next(trainer.steps(digits[0], digits[1]))
    with pytest.raises(NotSupportedError, match="steps can't be undone"):
        trainer.find_learning_rate(digits[0], digits[1])


SCRIPT = """
from keras_deepseek.training import Trainer, join_cluster as join

JOINS
import keras, numpy as np


class Doubled(keras.layers.Dense):
    def call(self, x, training=None):
        return 2.0 * super().call(x)


class Penalized(Trainer):
    def train_step(self, x, y=None, sample_weight=None):
        outputs = self.model(x, training=True)
        loss = self.model.compute_loss(x, y, outputs, sample_weight)
        return {"loss": loss, "largest": keras.ops.max(outputs)}


model = keras.Sequential([keras.Input((4,)), Doubled(1)])
trainer = Penalized(model, optimizer="adam", loss="mse", distributed_strategy=STRATEGY)
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = x.sum(axis=1, keepdims=True)
history = trainer.fit(x, y, batch_size=8, epochs=3, verbose=0).history
first, _, last = history["loss"]
print(sorted(history), int(trainer.model.optimizer.iterations), last < first)
"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("joins", "strategy"),
    [
        ("", None),
        ("", "parameter_server"),
        ("join()", None),
        ("join('parameter_server')", "parameter_server"),
    ],
)
def test_a_script_that_is_launched_trains_with_classes_of_its_own(tmp_path, joins, strategy):
    if not IS_TENSORFLOW:
        pytest.importorskip("ray", reason="tox -e ray has it.")
    script = tmp_path / "train.py"
    text = SCRIPT.replace("JOINS", joins).replace("STRATEGY", repr(strategy))
    script.write_text(text if joins else text.replace(", join_cluster as join", ""))
    command = [sys.executable, "-m", "keras_deepseek.cli", "launch", "--nproc", "3"]
    command += ["--strategy", "parameter_server", str(script)]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "['largest', 'loss'] 24 True" in done.stdout


@on_ray
def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[ray\]"):
        make_trainer(ParameterServer(num_workers=2))


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return {}


@pytest.mark.usefixtures("needs_ray")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"guard": StepGuard("skip")}, NotSupportedError, "does not support `guard`"),
        ({"precision": "float16"}, NotSupportedError, "does not support float16"),
        ({"optimizer": Muon({"kernel": "rc"})}, NotSupportedError, "does not support `Muon`"),
        (
            {"model": lambda: OwnStep([keras.Input((64,)), keras.layers.Dense(10)])},
            InvalidInputError,
            "has its own `train_step`",
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
    with pytest.raises(PeerLostError, match=r"no Ray cluster at '127\.0\.0\.1:1': .*refused"):
        make_trainer(ParameterServer(num_workers=2, address="127.0.0.1:1"))

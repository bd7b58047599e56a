import json
import os
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training import Trainer
from keras_deepseek.training.cluster import placement
from keras_deepseek.training.cluster.placement import Placement

TIMEOUT = 900
ORACLES = Path(__file__).parents[2] / "oracles"
IS_JAX = keras.backend.backend() == "jax"
IS_TENSORFLOW = keras.backend.backend() == "tensorflow"


def run(oracle, *arguments):
    """Returns what an oracle prints, run in a process of its own."""
    command = [sys.executable, str(ORACLES / oracle), *arguments]
    paths = {"PYTHONPATH": os.pathsep.join(["", *sys.path]), "PYTHONFAULTHANDLER": "1"}
    result = subprocess.run(
        command,
        env={**os.environ, **paths},
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def compare(oracle, *arguments):
    """Returns how far each way to train over devices is from that on one: not far."""
    differences = run(oracle, *arguments)
    assert differences.pop("half precision") < 1e-3
    assert max(differences.values()) < 1e-5, differences
    return differences


@pytest.mark.nightly
@pytest.mark.skipif(not IS_JAX, reason="Only JAX spreads a training over devices of one process.")
def test_a_training_over_several_devices_is_that_on_one():
    differences = compare("data_parallel.py", "2")
    assert {"all at once", "layouts", "transformer", "steps"} <= set(differences)


@pytest.mark.nightly
@pytest.mark.skipif(not IS_JAX, reason="Only JAX spreads a training over devices of one process.")
@pytest.mark.parametrize("num_devices", ["2", "8"])
def test_each_way_to_train_over_several_devices_is_that_on_one(num_devices):
    differences = compare("data_parallel.py", num_devices, "all ways")
    assert {"guard", "clip", "micro-batches", "checkpoints", "a distribution"} <= set(differences)


@pytest.mark.nightly
@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.skipif(not IS_JAX, reason="Keras shards variables on JAX alone.")
def test_a_training_of_sharded_weights_is_that_on_one_device():
    reports = run("fully_sharded.py", "8")
    for half in (reports.pop("bfloat16"), reports.pop("float16")):
        assert half["losses"] < 1e-2
        assert half["share of weights"] < 1 / 4
    resumed = reports.pop("resumed")
    assert set(resumed) == {"4", "None"}
    assert max(resumed.values()) < 1e-5
    assert {"dense", "mixture", "plain", "together", "a model that is there"} <= set(reports)
    for name, report in reports.items():
        # A mesh of four by two: what is not an expert is split by four.
        most = 1 / 8 + 0.02 if name in ("dense", "plain", "a model that is there") else 1 / 4
        assert max(report["share of weights"], report["share of the optimizer"]) < most, name
        assert max(report["losses"], report["weights"]) < 1e-5, name


@pytest.mark.skipif(not IS_JAX, reason="Keras shards variables on JAX alone.")
def test_layouts_of_other_weights_are_refused(caplog):
    def train(*paths):
        layouts = keras.distribution.LayoutMap(
            keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
        )
        for path in paths:
            layouts[path] = (None, "batch")
        distribution = keras.distribution.ModelParallel(layout_map=layouts)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="dense")])
        Trainer(model, optimizer="sgd", loss="mse", distributed_strategy=distribution)

    with pytest.raises(InvalidInputError, match=r"1 of 1 layouts, such as that of '.*a/kernel'"):
        train(".*a/kernel")
    train(".*dense/kernel", ".*a/kernel", "a/output")
    assert "1 of 3 layouts, such as that of '.*a/kernel', are for no weight" in caplog.text


@pytest.mark.nightly
@pytest.mark.skipif(not IS_TENSORFLOW, reason="JAX has one program over all; PyTorch one device.")
def test_devices_that_divide_the_rows_make_the_steps_of_one():
    differences = compare("device_replicas.py", "2")
    assert {"guard", "clip", "micro-batches", "checkpoints", "steps"} <= set(differences)


@pytest.mark.skipif(IS_JAX, reason="One program of JAX cuts a batch into equal parts.")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batches": 2, "gradient_clip": ("global_norm", 0.5)},
        {"guard": "skip", "precision": "float16"},
    ],
    ids=["plain", "parts", "half precision"],
)
def test_a_training_that_is_divided_by_speed_is_that_on_one_device(monkeypatch, options):
    def train(device_map):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(16, activation="tanh"),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(3),
            ]
        )
        trainer = Trainer(
            model,
            optimizer=keras.optimizers.AdamW(0.01, use_ema=True),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            device_map=device_map,
            **options,
        )
        model.layers[1].trainable = False  # Each device would take the statistics of its rows.
        history = trainer.fit(x, y, batch_size=16, epochs=5, shuffle=False, verbose=0).history
        return model.get_weights(), history, trainer.evaluate(x, y, verbose=0)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(49, 6)).astype("float32")  # Of four batches the last has one row.
    y = rng.integers(0, 3, 49)
    keras.utils.set_random_seed(1)
    alone = train(None)
    monkeypatch.setattr(placement, "choose_devices", lambda *_: ["cpu:0", "cpu:0"])
    keras.utils.set_random_seed(1)
    divided = train({"cpu": [0, 1]})
    atol = 2e-3 if "precision" in options else 1e-5
    for expected, received in zip(*map(keras.tree.flatten, (alone, divided)), strict=True):
        np.testing.assert_allclose(expected, received, rtol=0, atol=atol)


def test_several_devices_and_a_strategy_are_two_ways_to_divide_a_batch(monkeypatch):
    monkeypatch.setattr(placement, "choose_devices", lambda *_: ["cpu:0", "cpu:0"])
    with pytest.raises(InvalidInputError, match="Leave one of the two out"):
        Placement({"cpu": [0, 1]}, "allreduce")


@pytest.mark.skipif(not IS_TENSORFLOW, reason="Only TensorFlow has them.")
def test_strategies_of_tensorflow_say_which_devices():
    import tensorflow as tf

    assert Placement(None, tf.distribute.OneDeviceStrategy("CPU:0")).replicas is None
    storage = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"])
    assert Placement(None, storage).replicas is None


@pytest.mark.skipif(not IS_TENSORFLOW, reason="Only TensorFlow has it.")
def test_a_strategy_of_tpus_divides_the_rows_among_them():
    """Not run on TPUs: one can't be made without. Its devices are two times the CPU here."""
    import tensorflow as tf

    strategy = object.__new__(tf.distribute.TPUStrategy)
    strategy._extended = types.SimpleNamespace(worker_devices=("/device:CPU:0",) * 2)
    logs = []
    for distributed_strategy in (strategy, None):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        trainer = Trainer(
            model,
            optimizer="adam",
            loss="mse",
            metrics=["mae"],
            distributed_strategy=distributed_strategy,
        )
        x = np.random.default_rng(0).normal(size=(13, 3))
        history = trainer.fit(x, x[:, :2], batch_size=4, epochs=2, verbose=0, shuffle=False)
        logs.append([*history.history["loss"], *history.history["mae"]])
        assert (trainer._cluster.placement.replicas is None) == (distributed_strategy is None)
    np.testing.assert_allclose(*logs, rtol=1e-5)


def test_what_is_no_strategy_is_refused():
    with pytest.raises(InvalidInputError, match="received <object object"):
        Placement(None, object())


def test_a_distribution_of_keras_runs_on_jax_alone():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    if not IS_JAX:  # Some releases of Keras can't even make one there.
        distribution = object.__new__(keras.distribution.DataParallel)
        with pytest.raises(NotSupportedError, match="DataParallel is one of Keras's distributions"):
            Trainer(model, optimizer="sgd", loss="mse", distributed_strategy=distribution)
        return
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    distribution = keras.distribution.DataParallel(device_mesh=mesh)
    trainer = Trainer(model, optimizer="sgd", loss="mse", distributed_strategy=distribution)
    history = trainer.fit(np.ones((3, 2)), np.ones((3, 1)), epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    assert keras.distribution.distribution() is None
    with pytest.raises(InvalidInputError, match="device_map has one device, cpu:0"):
        Placement({"cpu": 0}, distribution)


def test_one_device_is_placed_on_as_ever():
    placement = Placement({"cpu": 0}, None)
    assert (placement.device, placement.kind, placement.distribution) == ("cpu:0", "cpu", None)
    assert Placement(None, "allreduce").distribution is None


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only TensorFlow has them.")
def test_a_model_of_several_copies_is_refused(monkeypatch):
    import tensorflow as tf

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    monkeypatch.setattr(tf.distribute.Strategy, "num_replicas_in_sync", 2)
    with pytest.raises(NotSupportedError, match=r"a strategy of tf\.distribute with 2 copies"):
        Trainer(model, optimizer="sgd", loss="mse")

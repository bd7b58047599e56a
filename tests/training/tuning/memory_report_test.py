import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import MemoryReport, Trainer
from keras_deepseek.training.checkpoints.training_state import read_variables

X = np.random.default_rng(0).normal(size=(64, 128)).astype("float32")
Y = np.arange(64) % 10
WEIGHTS = 4 * (128 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10)
HIDDEN = 64 * 256  # Numbers of a hidden layer's output.
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(loss=LOSS, optimizer="adam", **options):
    hidden = [keras.layers.Dense(256, activation="relu", name=name) for name in ("first", "second")]
    model = keras.Sequential([keras.Input((128,)), *hidden, keras.layers.Dense(10)])
    return Trainer(model, optimizer=optimizer, loss=loss, seed=1, **options)


def test_the_parts_of_a_plain_training():
    report = build().measure_memory(X, Y, batch_size=64)
    assert report.weights == report.gradients == WEIGHTS
    assert 2 * WEIGHTS <= report.optimizer < 2 * WEIGHTS + 100
    # Two hidden outputs and the logits; JAX also keeps where each output was above zero.
    assert 4 * (2 * HIDDEN + 640) <= report.activations <= 6 * (2 * HIDDEN + 640)
    assert report.total == 2 * WEIGHTS + report.optimizer + report.activations
    assert report.batch_size == 64


def test_activations_grow_with_the_batch():
    trainer = build()
    small, large = (trainer.measure_memory(X, Y, size).activations for size in (16, 64))
    assert 3.9 * small < large < 4.1 * small


def test_micro_batches_hold_the_activations_of_one():
    whole, parts = (build(micro_batches=n).measure_memory(X, Y, 64) for n in (1, 4))
    assert 3.9 * parts.activations < whole.activations < 4.1 * parts.activations
    assert parts.gradients == 2 * whole.gradients
    assert parts.batch_size == 64


def test_a_block_that_is_computed_anew_keeps_its_input_alone():
    hidden = [keras.layers.Dense(256, activation="tanh") for _ in range(3)]
    inner = keras.Sequential([keras.Input((128,)), *hidden], name="block")
    model = keras.Sequential([keras.Input((128,)), inner, keras.layers.Dense(10)])
    reports = [
        Trainer(model, optimizer="adam", loss=LOSS, remat=remat).measure_memory(X, Y, 64)
        for remat in (False, ["block"])
    ]
    assert reports[0].activations - reports[1].activations >= 4 * 2 * HIDDEN


def test_half_precision_halves_the_activations_and_keeps_its_weights():
    full = build().measure_memory(X, Y, 64)
    half = build(precision="bfloat16").measure_memory(X, Y, 64)
    assert half.weights == full.weights
    cast = WEIGHTS // 2
    assert half.activations - cast < 0.75 * full.activations


@pytest.mark.torch_alone
def test_a_loop_counts_each_of_its_rounds():
    tokens = np.ones((8, 30), "int32")
    activations = []
    for length in (10, 30):
        layers = [keras.layers.Embedding(5, 16), keras.layers.LSTM(64), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((length,), dtype="int32"), *layers])
        trainer = Trainer(model, optimizer="sgd", loss=LOSS)
        activations.append(trainer.measure_memory(tokens[:, :length], Y[:8]).activations)
    assert activations[0] > 10 * 8 * 64 * 4 * 4  # At least the four gates of each step.
    assert 2.5 * activations[0] < activations[1] < 3.5 * activations[0]


def test_the_model_is_restored():
    trainer = build(optimizer=keras.optimizers.Adam(use_ema=True))
    trainer.fit(X, Y, verbose=0)
    old_state = read_variables(trainer.model)
    trainer.measure_memory(X, Y)
    after = read_variables(trainer.model)
    for group in ("model", "optimizer", "metrics"):
        for old_value, new_value in zip(
            old_state[group]["values"], after[group]["values"], strict=True
        ):
            np.testing.assert_array_equal(old_value, new_value)
    trainer.fit(X, Y, verbose=0)


def test_an_unbuilt_model_is_built():
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    report = Trainer(model, optimizer="sgd", loss=LOSS).measure_memory(X, Y)
    assert report.weights > report.gradients > 4 * 8 * 128


def test_it_prints_a_table():
    table = str(MemoryReport(2**20, 2**20, 2**21, 2**30, 16)).splitlines()
    assert table == [
        "weights              1.0 MiB     0%",
        "gradients            1.0 MiB     0%",
        "optimizer            2.0 MiB     0%",
        "activations      1,024.0 MiB   100%   of a batch of 16",
        "total            1,028.0 MiB   100%",
    ]


def test_a_small_model_has_a_table_of_kib():
    table = str(MemoryReport(20, 20, 512, 2**10, 16)).splitlines()
    assert table[2:4] == [
        "optimizer            0.5 KiB    32%",
        "activations          1.0 KiB    65%   of a batch of 16",
    ]


def test_models_without_loss_batch_or_trainer_step_are_refused():
    with pytest.raises(InvalidInputError, match="has no loss: pass Trainer"):
        build(loss=None).measure_memory(X)
    with pytest.raises(InvalidInputError, match="no batch"):
        build().measure_memory(X[:0], Y[:0])

    class Own(keras.Model):
        def train_step(self, *arguments):
            raise AssertionError

    inputs = keras.Input((128,))
    trainer = Trainer(Own(inputs, keras.layers.Dense(1)(inputs)), optimizer="sgd", loss="mse")
    with pytest.raises(InvalidInputError, match="its own `train_step`"):
        trainer.measure_memory(X, X[:, :1])


def test_a_guard_changes_no_activations():
    trainer = build(guard="skip")
    activations = trainer.measure_memory(X, Y).activations
    assert activations == build().measure_memory(X, Y).activations
    assert len(trainer.model.metrics_variables) == 2

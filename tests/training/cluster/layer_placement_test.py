import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.training import Trainer

ORACLE = Path(__file__).parents[2] / "oracles" / "divided_layers.py"
IS_TENSORFLOW = keras.backend.backend() == "tensorflow"
X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(12, 2)).astype("float32")
HERE = {"first*": "cpu:0", "second": "cpu:0"}
not_on_jax = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="One program of JAX has layouts instead."
)


def compare(*ways):
    """Returns how far trainings on two devices are from those on one."""
    paths = {"PYTHONPATH": os.pathsep.join(["", *sys.path])}
    result = subprocess.run(
        [sys.executable, str(ORACLE), *ways],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def build(num_outputs=2):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="tanh", name="first_1"),
            keras.layers.BatchNormalization(name="first_2"),
            keras.layers.Dropout(0.5, seed=3, name="second"),
            keras.layers.Dense(num_outputs, name="third"),
        ]
    )


def make_trainer(device_map, model=None, **options):
    options = {"optimizer": "adam", "loss": "mse", **options}
    return Trainer(model or build(), device_map=device_map, **options)


@pytest.mark.tensorflow_alone
@not_on_jax
def test_two_devices_make_the_steps_of_one():
    """With micro-batches, clip, guard, remat and moving averages together."""
    differences = compare("small", *(["places"] if IS_TENSORFLOW else []))
    assert differences["small"] < 1e-4
    if not IS_TENSORFLOW:  # PyTorch can't multiply what is on two devices.
        return
    # For each layer, three products of matrices: of the outputs, and of two gradients.
    devices = differences["places"]
    assert devices["6,7"] == devices["6,11"] == ["cpu:1"] * 3  # Those of `decoder_model`.
    assert devices["7,11"] == ["cpu:0"] * 3  # The layer inside it that is for the first device.
    assert devices["3,6"] == [""] * 3  # The head, which is for the device of all others.


@not_on_jax
@pytest.mark.nightly
def test_all_that_a_trainer_can_do_goes_with_it():
    ways = ["plain", "clip", "micro-batches", "sum", "remat", "remat inside", "averages"]
    ways += ["together", "unbuilt", "own step", "eager"]
    differences = compare(*ways, "half precision", "small half", "resumed")
    assert differences.pop("resumed") == 0
    # One of a hundred answers is another; Adam divides noise by itself where a gradient is zero.
    loose = ("half precision", "small half", "averages")
    assert max(differences.pop(name) for name in loose) < 2e-2
    assert max(differences.values()) < 2e-4, differences


@not_on_jax
@pytest.mark.nightly
def test_every_optimizer_takes_weights_of_two_devices():
    names = ["Adadelta", "Adafactor", "Adagrad", "Ftrl", "RMSprop", "SGD"]
    differences = compare(*names, "Adam", "AdamW", "Adamax", "Lamb", "Lion", "Muon", "Nadam")
    assert max(differences.pop(name) for name in names) < 2e-4
    # These divide noise by itself where a gradient is zero.
    assert max(differences.values()) < 2e-2, differences


@not_on_jax
def test_everything_on_one_device_is_the_training_without():
    def train(device_map):
        trainer = make_trainer(device_map)
        history = trainer.fit(X, Y, batch_size=4, epochs=3, verbose=0, validation_data=(X, Y))
        return history.history, trainer.model.get_weights(), trainer.predict(X, verbose=0)

    keras.utils.set_random_seed(0)
    expected = train(None)
    keras.utils.set_random_seed(0)
    for received, reference in zip(*map(keras.tree.flatten, (train(HERE), expected)), strict=True):
        np.testing.assert_allclose(received, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.torch_alone
@not_on_jax
def test_a_model_is_what_it_was_afterwards_even_after_an_error():
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert "call" in vars(self.model.layers[0])
            raise RuntimeError("it fails")

    model = build()
    trainer = make_trainer(HERE, model)
    predict_function = model.predict_function
    with pytest.raises(RuntimeError, match="it fails"):
        trainer.fit(X, Y, verbose=0, callbacks=Fails())
    trainer.evaluate(X, Y, verbose=0)
    for layer in (model, *model.layers):
        assert not {"call", "make_test_function", "make_predict_function"} & set(vars(layer))
    assert "add_variable_from_reference" not in vars(model.optimizer)
    assert model.predict_function is predict_function
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5)


@not_on_jax
def test_a_loop_over_steps_may_evaluate_and_its_functions_are_compiled_once():
    trainer = make_trainer(HERE)
    losses, functions = [], set()
    for _ in trainer.steps(X, Y, batch_size=4):
        losses.append(trainer.evaluate(X, Y, verbose=0))
        functions.add(id(trainer.model.test_function))
    assert len(losses) == 3
    assert len(functions) == 1
    assert "call" not in vars(trainer.model.layers[0])


@not_on_jax
def test_a_model_that_is_not_built_is_placed_when_it_is():
    layers = [keras.layers.Dense(3, name="first_1"), keras.layers.Dense(2, name="second")]
    trainer = make_trainer(HERE, keras.Sequential(layers))
    history = trainer.fit(X, Y, epochs=3, verbose=0, validation_data=(X, Y)).history
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert trainer.predict(X, verbose=0).shape == (12, 2)
    trainer = make_trainer({"frist": "cpu:0"}, keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(InvalidInputError, match="Unknown layer in device_map 'frist'"):
        trainer.fit(X, Y, verbose=0)


@not_on_jax
def test_functions_that_were_compiled_before_are_made_anew_where_weights_are_moved(monkeypatch):
    model = build()
    model.predict(X, verbose=0)
    trainer = make_trainer(HERE, model)
    monkeypatch.setattr(
        backend.current().devices, "move_variables", lambda devices, optimizer: True
    )
    trainer.evaluate(X, Y, verbose=0)
    assert model.predict_function is None


@not_on_jax
def test_a_pattern_of_no_layer_is_told_at_once():
    with pytest.raises(InvalidInputError, match="did you mean 'first_1'"):
        make_trainer({"frist_1": "cpu:0"})


@not_on_jax
def test_memory_can_be_measured():
    assert make_trainer(HERE).measure_memory(X, Y, 4).activations > 0


def test_jax_has_layouts_instead_and_copies_have_all_layers():
    if keras.backend.backend() == "jax":
        with pytest.raises(NotSupportedError, match=r"ModelParallel.*transformer_layout_map"):
            make_trainer(HERE)
        return
    with pytest.raises(InvalidInputError, match="Leave one of the two out"):
        make_trainer(HERE, distributed_strategy="allreduce")


@pytest.mark.skipif(backend.current().devices.count_devices("gpu") < 2, reason="It needs two GPUs.")
@not_on_jax
def test_two_gpus_make_the_steps_of_one():
    def train(device_map):
        trainer = make_trainer(device_map, optimizer=keras.optimizers.AdamW(0.01))
        trainer.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0)
        return trainer.model.get_weights()

    two = train({"first*": "gpu:0", "second": "gpu:1", "third": "gpu:1"})
    for received, reference in zip(two, train({"gpu": 0}), strict=True):
        np.testing.assert_allclose(received, reference, rtol=1e-3, atol=1e-4)

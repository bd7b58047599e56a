import gzip
import json
import os

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.backend.data.random_state import read_random_state
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer

X = np.random.default_rng(0).normal(size=(160, 64)).astype("float32")
Y = X[:, :1]
# A program that an earlier run left in JAX's persistent cache has no names: each compiles its own.
OWN_RATE = 0.1 + os.getpid() * 1e-8


def build(units=64):
    """Returns a model in which the layer `wide` does nearly all of the work."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(OWN_RATE, name="dropout"),
            keras.layers.Dense(units, name="wide"),
            keras.layers.Dense(1),
        ],
        name="all",
    )


def state_of(trainer):
    model = trainer.model
    groups = model.variables, model.optimizer.variables, model.metrics_variables
    values = [np.array(keras.ops.convert_to_numpy(v)) for group in groups for v in group]
    random = keras.tree.flatten(read_random_state())
    return [*values, *(np.asarray(array) for array in random)]


def assert_same(old_state, new_state):
    assert len(old_state) == len(new_state)
    for old_array, new_array in zip(old_state, new_state, strict=True):
        np.testing.assert_array_equal(old_array, new_array)


@pytest.mark.torch_alone
def test_a_profile_leaves_the_training_as_it_was(tmp_path):
    trainer = Trainer(build, optimizer="adam", loss="mse", metrics=["mae"], seed=1)
    path = trainer.record_run(tmp_path / "run.sqlite")
    trainer.fit(X, Y, batch_size=32, verbose=0)
    old_state = state_of(trainer)
    profile = trainer.profile(X, Y, batch_size=32)  # Five batches, which are repeated.
    assert_same(old_state, state_of(trainer))
    assert profile.steps == 5
    assert profile.step_seconds == pytest.approx(sum(profile.parts.values()))
    assert min(profile.layers["all/wide"]) > 0
    assert min(profile.parts[name] for name in ("forward", "backward", "loss", "optimizer")) > 0
    with RunRecord(path, read_only=True) as record:
        assert record.document("profile")["parts"] == profile.parts
        paths = {node["path"] for node in record.document("model_graph")["children"]}
    assert set(profile.layers) <= {*paths, profile.model, "dropout"}  # Not in a graph at inference.
    with gzip.open(tmp_path / "run.profile.json.gz", "rt") as file:
        assert profile.trace_file == str(tmp_path / "run.profile.json.gz")
        assert any(
            event["args"].get("layer") == "all/wide" for event in json.load(file)["traceEvents"]
        )


@pytest.mark.torch_alone
def test_a_generator_must_have_enough_batches():
    trainer = Trainer(build, optimizer="sgd", loss="mse")
    with pytest.raises(InvalidInputError, match="ended before 7 batches"):
        trainer.profile((X[:8], Y[:8]) for _ in range(6))
    trainer.profile((X[:8], Y[:8]) for _ in range(7))


@pytest.mark.torch_alone
def test_a_loop_over_steps_is_not_profiled_from_outside():
    trainer = Trainer(build, optimizer="sgd", loss="mse")
    steps = trainer.steps(X, Y)
    next(steps)
    with pytest.raises(InvalidInputError, match="is being trained"):
        trainer.profile(X, Y)
    steps.close()


@pytest.mark.nightly
def test_slow_data_are_waited_for():
    def batches():
        while True:
            np.linalg.svd(np.random.default_rng(0).normal(size=(400, 400)))
            yield X[:8], Y[:8]

    profile = Trainer(build, optimizer="sgd", loss="mse").profile(batches())
    assert profile.parts["data_wait"] > 0.5 * profile.step_seconds


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        return X[:128], Y[:128]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "jit_compile"),
    [
        ({}, "auto"),
        ({"micro_batches": 2, "fp16_enabled": True, "gradient_clip": ("global_norm", 1.0)}, "auto"),
        ({"remat": ["wide"], "guard": "skip", "layer_statistics": True}, "auto"),
        ({"micro_batches": 2}, True),
    ],
)
def test_the_most_expensive_layer_is_found(tmp_path, options, jit_compile):
    if jit_compile is True and keras.backend.backend() == "torch":
        pytest.skip("A step that torch.compile made is not opened.")
    model = keras.Sequential(
        [
            keras.Input((64,)),
            *(keras.layers.Dense(64, activation="relu") for _ in range(3)),
            keras.layers.Dense(6000, activation="relu", name="wide"),
            keras.layers.Lambda(lambda x: x[:, :64], output_shape=(64,), name="narrow"),
            keras.layers.Dense(1),
        ],
        name="all",
    )
    model.compile("sgd", "mse", jit_compile=jit_compile)
    trainer = Trainer(model, run_record=tmp_path / "run.sqlite", **options)
    data = Batches()
    trainer.fit(data, verbose=0)
    old_state = state_of(trainer)
    profile = trainer.profile(data)
    assert_same(old_state, state_of(trainer))
    layers = {path: sum(times) for path, times in profile.layers.items()}
    assert layers["all/wide"] > 0.5 * sum(layers.values())
    assert profile.unassigned < 0.05
    assert profile.parts["forward"] + profile.parts["backward"] == pytest.approx(
        sum(layers.values())
    )

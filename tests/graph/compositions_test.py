"""Random compositions of the layers that users write: no program is another model.

`COMPOSITIONS=2000 COMPOSITIONS_SEED=7 pytest --timeout 0 -o faulthandler_timeout=0` tries others.
"""

import os
import random

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st
from keras import layers

from keras_deepseek import graph
from keras_deepseek.graph.passes import PASSES
from keras_deepseek.training import Trainer
from tests.oracles.foreign_layers import FORMS
from tests.oracles.user_layers import EXPECTED

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]

FEW = 200 if keras.backend.backend() == "torch" else 10  # The others compile for seconds.
SEED = int(os.environ.get("COMPOSITIONS_SEED", random.randrange(2**32)))
_STATE_OF_THE_PROCESS = {
    *("counts_calls_in_the_module", "counts_calls_of_the_class", "counts_in_a_closure"),
    *("has_a_mutable_default", "shadows_a_builtin", "shadows_the_operations"),
    *("draws_from_torch", "draws_from_numpy", "draws_from_python", "draws_without_a_seed"),
    *("has_a_method_replaced_on_the_object", "sorts_by_a_key", "reads_the_clock"),
}
"""Layers of which two copies share a state, or that draw from generators that others use."""

NAMES = sorted(FORMS.keys() - _STATE_OF_THE_PROCESS)
ADMITTED = [name for name in NAMES if EXPECTED[name] is None]


def join(kind, x, y, index):
    if kind == "chain":
        return y
    if kind == "residual":
        return x + 0.5 * y
    return layers.Concatenate()([x, layers.Dense(4, name=f"side_{index}")(y)])[..., 2:6]


def build(parts, end):
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((None, 4))
    for index, (name, kind) in enumerate(parts):
        x = join(kind, x, FORMS[name]()(x), index)
        x = layers.LayerNormalization()(x)
    x = x[:, 0] if end == "first row" else keras.ops.mean(x, axis=1)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    return model


def run(model, original, batches):
    """Returns losses and outputs of a few steps, and all weights after them."""
    numbers = []
    for x in batches:
        numbers.append(model.train_on_batch(x, np.ones((len(x), 2), "float32")))
        numbers.append(model.predict_on_batch(x[::-1].copy()))
    return [*numbers, *original.get_weights()]


def run_as_it_is(model, batches):
    return run(model, model, batches)


def run_program(model, batches):
    optimized = graph.OptimizedModel(
        model, keras.KerasTensor(batches[0].shape), mode="train", passes=tuple(PASSES)
    )
    optimized.compile(keras.optimizers.SGD(1e-3), "mse")
    return run(optimized, model, batches)


def train(model, batches, **options):
    """Returns losses and outputs of trainings of three steps, and all weights after them.

    On PyTorch the third step of a shape is a recording, and the second one proves it.
    """
    trainer = Trainer(model, seed=1, **options)
    numbers = []
    for batch in batches:
        size, x = len(batch), np.concatenate([batch, batch[::-1], 2.0 * batch])
        numbers += trainer.fit(x, np.ones((len(x), 2)), size, verbose=0).history["loss"]
        numbers.append(trainer.predict(x, batch_size=size, verbose=0))
    return [*numbers, *model.get_weights()]


def train_as_it_is(model, batches):
    model.layers[-1].register_forward_hook(lambda *_: None)  # Such a model is not recorded.
    return train(model, batches)


def train_by_programs(model, batches):
    return train(model, batches, optimize_graph=True)


ROUNDED = {"rtol": 2e-3, "atol": 2e-4}
WAYS = {"a program": (run_as_it_is, run_program, ROUNDED)}
if keras.backend.backend() == "torch":
    WAYS["a recording"] = train_as_it_is, train, {"rtol": 0}
    WAYS["a recorded program"] = train_as_it_is, train_by_programs, ROUNDED


@seed(SEED)
@settings(
    max_examples=int(os.environ.get("COMPOSITIONS", FEW)),
    deadline=None,
    derandomize=False,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    way=st.sampled_from(sorted(WAYS)),
    parts=st.lists(
        st.tuples(
            st.sampled_from(ADMITTED) | st.sampled_from(NAMES),
            st.sampled_from(["chain", "residual", "side"]),
        ),
        min_size=1,
        max_size=3,
    ),
    end=st.sampled_from(["first row", "mean"]),
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=2),
    draw=st.integers(0, 2**31),
)
def test_a_composition_trains_and_predicts_as_the_model_does(way, parts, end, sizes, draw):
    print(f"COMPOSITIONS_SEED={SEED}", way, parts, end, sizes, draw)
    generator = np.random.default_rng(draw)
    batches = [generator.normal(size=(*size, 4)).astype("float32") for size in sizes for _ in "ab"]
    compute_expected, compute, tolerance = WAYS[way]
    try:
        expected = compute_expected(build(parts, end), batches)
    except Exception:  # noqa: BLE001 - not every composition takes each shape
        event("the model fails")
        return
    event(f"{way}, {sum(name in ADMITTED for name, _ in parts)} of {len(parts)} admitted")
    received = compute(build(parts, end), batches)
    for expected_array, received_array in zip(expected, received, strict=True):
        np.testing.assert_allclose(received_array, expected_array, **tolerance)

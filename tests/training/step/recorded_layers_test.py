"""Recorded steps of each layer of Keras and of ours, and of random models, beside Keras's steps."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.layers import DeepSeekMoE, ExpertRouter
from keras_deepseek.training import Trainer
from tests.oracles.graph_layers import layer_names, make_inputs, make_layer
from tests.oracles.graph_models import random_model

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others are compiled."),
    pytest.mark.filterwarnings("ignore"),
]
NUM_STEPS = 6
NAMES = [name for name in layer_names() if name != "RandomCrop"]  # It has other sizes in training.


def around(name, examples):
    """Returns a model with weights before and after a layer."""
    symbols = [keras.Input(x.shape[1:], batch_size=len(x), dtype=x.dtype) for x in examples]
    hidden = [
        layers.Dense(symbol.shape[-1])(symbol) if "float" in symbol.dtype else symbol
        for symbol in symbols
    ]
    arguments = keras.tree.pack_sequence_as(make_inputs(name, np.random.default_rng(0)), hidden)
    outputs = make_layer(name)(*arguments)
    flat = [
        ops.reshape(ops.cast(output, "float32"), (len(examples[0]), -1))
        for output in keras.tree.flatten(outputs)
        if len(output.shape) > 1
    ]
    joined = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    return keras.Model(symbols, layers.Dense(2)(joined))


def train(build, x, y, *, is_eager, batch_size=None):
    """Returns the logs, the weights, what was predicted, and numbers of the random generators."""
    keras.utils.set_random_seed(1)
    model = build()
    model.compile(keras.optimizers.SGD(1e-2, global_clipnorm=1.0), "mse", metrics=["mae"])
    if is_eager:  # A model with a hook is not recorded. `run_eagerly` has loops of Keras run too.
        model.layers[-1].register_forward_hook(lambda *_: None)
    trainer = Trainer(model)
    batch_size = batch_size or len(y)
    logs = trainer.fit(x, y, batch_size=batch_size, epochs=NUM_STEPS, verbose=0).history
    weights = [ops.convert_to_numpy(variable.value) for variable in model.variables]
    predictions = [trainer.predict(x, batch_size=batch_size, verbose=0) for _ in range(3)]
    tests = [trainer.evaluate(x, y, batch_size=batch_size, verbose=0) for _ in range(3)]
    numbers = ops.convert_to_numpy(keras.random.uniform((2,))), np.random.default_rng(0).normal()
    return logs, weights, predictions, tests, numbers


def assert_same(build, x, y, **kwargs):
    expected, received = (
        train(build, x, y, is_eager=is_eager, **kwargs) for is_eager in (True, False)
    )
    for array, reference in zip(
        keras.tree.flatten(received), keras.tree.flatten(expected), strict=True
    ):
        np.testing.assert_array_equal(array, reference)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_of_a_layer_is_that_of_keras_to_the_bit(name):
    random = np.random.default_rng(0)
    examples = keras.tree.flatten(make_inputs(name, random))
    y = random.normal(size=(len(examples[0]), 2)).astype("float32")
    try:
        around(name, examples)(examples)
    except Exception as error:  # noqa: BLE001 - some layers take no symbols, or need other inputs
        pytest.skip(f"No model of it can be made: {str(error)[:200]}")
    assert_same(lambda: around(name, examples), examples, y)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(40))
def test_a_recorded_step_of_a_random_model_is_that_of_keras_to_the_bit(seed):
    def build():
        model, _ = random_model(np.random.default_rng(seed))
        outputs = [layers.Flatten()(output) for output in model.outputs]
        return keras.Model(
            model.inputs, layers.Dense(2)(layers.Concatenate()([*outputs, outputs[0]]))
        )

    _, shape = random_model(np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    x = random.normal(size=(4, *shape)).astype("float32")
    assert_same(build, x, random.normal(size=(4, 2)).astype("float32"))


@pytest.mark.torch_alone
def test_experts_are_trained_by_the_choices_of_each_batch():
    """The experts read which of them were chosen, and are called anew by a recording."""

    def build():
        inputs = keras.Input((16, 8))
        moe = DeepSeekMoE(ExpertRouter(8, 2), intermediate_dim=24, num_shared_experts=0)
        return keras.Model(inputs, layers.Dense(2)(moe(layers.Dense(8)(inputs))))

    random = np.random.default_rng(0)
    x = random.normal(size=(40, 16, 8)).astype("float32")
    y = random.normal(size=(40, 16, 2)).astype("float32")
    assert_same(build, x, y, batch_size=8)

import keras
import numpy as np
import pytest
from keras import layers

if keras.backend.backend() != "torch":
    pytest.skip("Keras mixes memory layouts on PyTorch only.", allow_module_level=True)

import torch

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.torch.layer_kernels import use_layer_kernels
from keras_deepseek.backend.torch.normalization import normalize
from keras_deepseek.inference.executors.keras_model import KerasModel
from keras_deepseek.training import Trainer

SHAPES = {1: (2, 9, 3), 2: (2, 9, 8, 3), 3: (2, 6, 7, 8, 3)}
"""Shapes of inputs by the number of their axes with positions."""


def make_inputs(shape, shift=0.0):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(shape, generator=generator) + shift).requires_grad_()


def call(layer, inputs, **arguments):
    """Returns outputs, and the gradients by inputs and weights."""
    outputs = layer(inputs, **arguments)
    upstream = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    sources = [inputs, *(variable.value for variable in layer.trainable_variables)]
    return [outputs.detach(), *torch.autograd.grad(outputs, sources, upstream)]


def call_in_one_layout(layer, inputs, **arguments):
    with use_layer_kernels():
        return call(layer, inputs, **arguments)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (2, 1), (5, 2), (4, 3)])
@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_pooling_gives_the_bits_of_keras(kind, axes, size, stride, padding):
    layer = getattr(layers, f"{kind}Pooling{axes}D")(size, stride, padding=padding)
    inputs = make_inputs(SHAPES[axes])
    actual, expected = call_in_one_layout(layer, inputs), call(layer, inputs)
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=0 if kind == "Max" else 1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["Average", "Max"])
def test_pooling_to_a_size_is_that_of_keras(kind):
    layer, inputs = getattr(layers, f"Adaptive{kind}Pooling2D")((3, 2)), make_inputs(SHAPES[2])
    for actual, expected in zip(
        call_in_one_layout(layer, inputs), call(layer, inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axes", SHAPES)
def test_a_transposed_convolution_is_that_of_keras(axes):
    layer = getattr(layers, f"Conv{axes}DTranspose")(4, 3, strides=2, padding="same")
    inputs = make_inputs(SHAPES[axes])
    layer.build(inputs.shape)
    for actual, expected in zip(
        call_in_one_layout(layer, inputs), call(layer, inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_pooling_keeps_the_memory_layout():
    layer, inputs = layers.MaxPooling2D(), make_inputs((2, 8, 8, 3)).detach()
    assert not layer(inputs).is_contiguous()
    with use_layer_kernels():
        assert layer(inputs).is_contiguous()


def reference(x, gamma, beta, groups, epsilon):
    by_group = x.view(*x.shape[:2], groups or x.shape[2], -1)
    mean = by_group.mean((1, 3), keepdim=True)
    variance = by_group.var((1, 3), correction=0, keepdim=True)
    return ((by_group - mean) / (variance + epsilon).sqrt()).view(x.shape) * gamma + beta


@pytest.mark.parametrize(("rows", "groups"), [(1, None), (3, 2), (3, 4), (3, 1)])
def test_a_normalization_is_its_formula_with_both_gradients(rows, groups):
    tensors = [make_inputs((rows, 5, 4), 0.5), make_inputs((4,)), make_inputs((4,), 1.0)]
    tensors = [tensor.detach().double().requires_grad_() for tensor in tensors]

    def compute(*tensors):
        return normalize(*tensors, groups, 1e-3)[0]

    torch.testing.assert_close(compute(*tensors), reference(*tensors, groups, 1e-3))
    assert torch.autograd.gradcheck(compute, tensors)
    assert torch.autograd.gradgradcheck(compute, tensors)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(("scale", "center"), [(True, True), (False, True), (True, False)])
def test_batch_normalization_is_that_of_keras(scale, center, trains):
    results = []
    for run in (call_in_one_layout, call):
        layer = layers.BatchNormalization(scale=scale, center=center, momentum=0.9)
        inputs = make_inputs((4, 6, 5, 8), 0.5)
        layer.build(inputs.shape)
        for _ in range(2):
            tensors = run(layer, inputs, training=trains)
        results.append([*tensors, *(v.value for v in layer.non_trainable_variables)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_group_normalization_is_that_of_keras(groups):
    layer, inputs = layers.GroupNormalization(groups), make_inputs((3, 6, 5, 8), 0.5)
    layer.build(inputs.shape)
    for actual, expected in zip(
        call_in_one_layout(layer, inputs), call(layer, inputs), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def make_model(*inner):
    keras.utils.set_random_seed(3)
    convolution = layers.Conv2D(4, 3, use_bias=False)
    head = [layers.Flatten(), layers.Dense(2)]
    return keras.Sequential([keras.Input((10, 10, 3)), convolution, *inner, *head])


def train(model):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 10, 10, 3)).astype("float32"), rng.normal(size=(32, 2))
    trainer = Trainer(model, optimizer=keras.optimizers.SGD(0.005), loss="mse")
    trainer.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    return trainer, x, y


def test_training_gives_the_weights_of_keras_fit():
    inner = [layers.BatchNormalization, layers.ReLU, layers.MaxPooling2D]
    ours, theirs = (make_model(*(layer() for layer in inner)) for _ in range(2))
    trainer, x, y = train(ours)
    theirs.compile(keras.optimizers.SGD(0.005), "mse")
    theirs.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for actual, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    expected = theirs.predict(x, verbose=0)
    np.testing.assert_allclose(trainer.predict(x, verbose=0), expected, rtol=0, atol=1e-4)
    executor, name = KerasModel(ours), NamedModel(ours).signature.inputs[0].name
    for _ in range(3):
        (actual,) = executor.run({name: x}).values()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


SEEN_STRIDES = []


class Strides(layers.Layer):
    """A layer that depends on the memory layout of its inputs."""

    def call(self, inputs):
        SEEN_STRIDES.append(inputs.stride())
        return inputs


def test_a_layer_that_reads_strides_sees_those_of_keras():
    model = make_model(layers.MaxPooling2D(), Strides())
    batch = np.zeros((4, 10, 10, 3), "float32")
    SEEN_STRIDES.clear()
    model(batch)
    (expected,) = SEEN_STRIDES
    trainer, x, _ = train(model)
    trainer.predict(x, batch_size=4, verbose=0)
    KerasModel(model).run({NamedModel(model).signature.inputs[0].name: batch})
    assert len(SEEN_STRIDES) > 1 + 16 + 8
    assert set(SEEN_STRIDES) == {expected}

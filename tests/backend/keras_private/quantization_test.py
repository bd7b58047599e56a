"""Canaries: they fail when a Keras release moves a private name."""

import gc
import weakref

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.quantization import (
    can_read_kernel,
    count_summed_axes,
    forget_parameters,
    layers_to_quantize,
    mark_quantized,
    new_weights,
    quantizes_inputs,
    read_block_size,
    read_int8_kernel,
    read_kernel,
)
from keras_deepseek.testing import assert_close
from tests.oracles.quantization import MODES


@pytest.mark.parametrize("has_lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_quantized_kernel_is_read_as_its_layer_uses_it(mode, has_lora):
    layer = keras.layers.EinsumDense("btd,dhn->bthn", (None, 2, 5))
    layer.build((None, None, 8))
    if mode is not None:
        layer.quantize(**MODES[mode])
    if has_lora:
        layer.enable_lora(2, lora_alpha=3.0)
        layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=(2, 5)))
    if not can_read_kernel(layer):
        pytest.skip("Keras 3.13 packs int4 in another way.")
    expected = layer(np.eye(8, dtype="float32")[None])[0]
    kernel = read_kernel(layer, "float32")
    assert_close(*map(keras.ops.convert_to_numpy, (kernel, expected)), 1e-5)


@pytest.mark.parametrize(
    ("layer", "number"),
    [
        (keras.layers.Dense(6), 1),
        (keras.layers.EinsumDense("bthd,hdn->btn", (None, 6)), 2),
        (keras.layers.EinsumDense("btd,nd->btn", (None, 6)), None),
    ],
    ids=["dense", "two axes", "transposed kernel"],
)
def test_an_int8_layer_tells_how_it_multiplies(layer, number):
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4, 8)[: 4 if number == 2 else 3])
    inputs = inputs.astype("float32")
    expected = keras.ops.convert_to_numpy(layer(inputs))
    assert count_summed_axes(layer) is None
    assert not quantizes_inputs(layer)
    layer.quantize("int8")
    assert count_summed_axes(layer) == number
    assert quantizes_inputs(layer)
    if number is not None:
        kernel, scale = map(keras.ops.convert_to_numpy, read_int8_kernel(layer))
        product = np.tensordot(inputs, kernel, number) / scale.reshape(-1)
        assert_close(product, expected, 2e-2)


def test_a_layer_that_is_marked_has_the_policy_and_gets_its_weights():
    layer = keras.layers.Layer(dtype="mixed_bfloat16")
    layer.build((None, 2))
    with new_weights(layer):
        layer.values = layer.add_weight(shape=(2,), dtype="int8", trainable=False)
    mark_quantized(layer, "int4", 16)
    assert layer.quantization_mode == "int4"
    assert layer.compute_dtype == "bfloat16"
    if "blocks" in MODES:
        assert layer.dtype_policy.block_size == 16
        assert read_block_size(MODES["blocks"]["config"]) == 4
        assert read_block_size(MODES["int4"]["config"]) is None
    with pytest.raises(ValueError, match="already quantized"):
        layer.quantize("int8")


def test_the_layers_that_filters_choose_are_found():
    layers = [keras.layers.Dense(2, name="one"), keras.layers.Dense(2, name="two")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    assert set(layers) < set(layers_to_quantize(model, None))
    assert layers_to_quantize(model, "tw") == [layers[1]]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others keep no such lists.")
def test_a_quantized_kernel_is_freed_and_the_parameters_are_listed_again():
    dense, inputs = keras.layers.Dense(3), keras.Input((4,))
    model = keras.Model(inputs, dense(inputs))
    kernel = weakref.ref(dense.kernel.value)
    assert len(list(model.parameters())) == 2
    forget_parameters(model)
    dense.quantize("int8")
    gc.collect()
    assert kernel() is None
    assert len(list(model.parameters())) == len(model.weights)

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.layers.quantized_layers import call_quantized, call_reversed_quantized
from keras_deepseek.testing import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:The use of `x.T`")  # Of Keras, on torch.

LAYERS = {
    "dense": (lambda: keras.layers.Dense(6, activation="relu"), (2, 3, 1300)),
    "heads": (
        lambda: keras.layers.EinsumDense("btd,dhk->bthk", (None, 3, 4), bias_axes="hk"),
        (1, 1, 40),
    ),
    "merged": (lambda: keras.layers.EinsumDense("bthv,hvd->btd", (None, 8)), (1, 2, 5, 7)),
    "other": (lambda: keras.layers.EinsumDense("btd,hdk->bthk", (None, 3, 4)), (1, 2, 8)),
}


def make_layer(name, rank=0):
    make, shape = LAYERS[name]
    generator = np.random.default_rng(0)
    layer = make()
    layer.build(shape)
    layer.quantize("int8")
    if rank:
        layer.enable_lora(rank)
        layer.lora_kernel_b.assign(generator.normal(size=layer.lora_kernel_b.shape))
    return layer, generator.normal(size=shape).astype("float32")


@pytest.mark.parametrize("rank", [0, 2], ids=["plain", "lora"])
@pytest.mark.parametrize("name", LAYERS)
def test_an_int8_layer_computes_the_numbers_of_keras(name, rank):
    layer, inputs = make_layer(name, rank)
    expected, outputs = (ops.convert_to_numpy(call(inputs)) for call in (layer, _call(layer)))
    assert_close(outputs, expected, 1e-6)


def _call(layer):
    return lambda inputs: call_quantized(layer, ops.convert_to_tensor(inputs))


@pytest.mark.nightly
@pytest.mark.parametrize("name", LAYERS)
def test_an_int8_layer_has_the_gradient_of_keras(name):
    layer, inputs = make_layer(name)
    compute = backend.current().compute
    expected, gradient = (
        compute.compute_gradients(lambda x, call=call: ops.sum(call(x) ** 2), [inputs], [])[0][0]
        for call in (layer, _call(layer))
    )
    assert_close(gradient, expected, 1e-5)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_int8_logits_are_those_of_keras(tie_weights):
    embedding = keras.layers.ReversibleEmbedding(30, 16, tie_weights=tie_weights)
    embedding.build()
    embedding.quantize("int8")
    hidden = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 1, 16)), "float32")
    expected = ops.convert_to_numpy(embedding(hidden, reverse=True))
    assert_close(ops.convert_to_numpy(call_reversed_quantized(embedding, hidden)), expected, 1e-6)


@pytest.mark.parametrize("sizes", [(1, 600, 700), (3, 2100, 5), (9, 1030, 7), (1, 3, 1)])
def test_products_of_int8_are_exact(sizes):
    num_rows, size, num_columns = sizes
    generator = np.random.default_rng(0)
    rows = generator.integers(-128, 128, (num_rows, size)).astype("int8")
    kernel = generator.integers(-128, 128, (size, num_columns)).astype("int8")
    rows[0], kernel[:, 0] = 127, -127  # A sum in 16 bits would saturate.
    product = backend.current().compute.multiply_int8(*map(ops.convert_to_tensor, (rows, kernel)))
    expected = rows.astype("int64") @ kernel.astype("int64")
    np.testing.assert_array_equal(ops.convert_to_numpy(product), expected)

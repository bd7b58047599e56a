import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.oracles.graph_rewriting import check_equal, draw, kinds, randomize, rewrite


def with_lora(make_layer, shape, dtype="float32", trains_kernel=False):
    inputs = keras.Input(shape, dtype=dtype)
    layer = make_layer(dtype)
    outputs = layer(inputs)
    layer.enable_lora(2)
    model = randomize(keras.Model(inputs, outputs))
    if trains_kernel:
        layer._kernel.trainable = True
    return model


LAYERS = {
    "Dense": lambda dtype: layers.Dense(48, dtype=dtype),
    "EinsumDense": lambda dtype: layers.EinsumDense("btd,dhe->bthe", (None, 4, 12), dtype=dtype),
}


@pytest.mark.each_backend
@pytest.mark.parametrize("name", LAYERS)
def test_splits_low_rank_updates(name):
    model = with_lora(LAYERS[name], (6, 48))
    optimized = rewrite(model, draw(2, 6, 48), "split_sums", mode="train")
    assert optimized.plan(training=True).rewrites["split_sums"]
    assert not any(
        node.spec.shape[:1] == (48,) and node.kind != "weight"
        for node in optimized.plan(training=True).program.graph.nodes()
    )  # The sum of the weights is not computed.
    check_equal(model, optimized, *(draw(n, 6, 48) for n in (2, 1, 5)))
    check_equal(model, optimized, draw(5, 6, 48), gradients=True)
    randomize(model)
    check_equal(model, optimized, draw(2, 6, 48))


def test_sequences_of_any_length():
    model = with_lora(LAYERS["EinsumDense"], (None, 48))
    optimized = rewrite(model, draw(2, 6, 48), "split_sums")
    assert optimized.plan().rewrites["split_sums"]
    assert len(optimized.plan().axes) == 2
    check_equal(model, optimized, draw(2, 6, 48), draw(3, 5, 48))


def test_weights_stay_live_and_frozen():
    model = with_lora(LAYERS["Dense"], (48,))
    kernel = np.array(ops.convert_to_numpy(model.layers[-1]._kernel))
    optimized = rewrite(model, draw(8, 48), "split_sums", mode="train")
    optimized.compile("sgd", "mse")
    outputs = ops.convert_to_numpy(optimized(draw(8, 48)))
    optimized.fit(draw(8, 48), draw(8, 48), verbose=0)
    assert np.array_equal(kernel, ops.convert_to_numpy(model.layers[-1]._kernel))
    assert not np.allclose(outputs, ops.convert_to_numpy(optimized(draw(8, 48))))
    check_equal(model, optimized, draw(3, 48))


def test_stays_in_float16():
    model = with_lora(LAYERS["Dense"], (48,), "float16")
    optimized = rewrite(model, draw(2, 48).astype("float16"), "split_sums")
    assert not optimized.plan().rewrites["split_sums"]
    assert kinds(optimized).count("Matmul") == 2


def test_stays_where_rows_are_many_more_than_the_kernel_s():
    model = with_lora(lambda dtype: layers.Dense(4, dtype=dtype), (4,))
    optimized = rewrite(model, draw(500, 4), "split_sums")
    assert not optimized.plan().rewrites["split_sums"]
    check_equal(model, optimized, draw(7, 4))

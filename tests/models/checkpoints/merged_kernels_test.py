import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.merged_kernels import merged_kernels, own_variable


@pytest.fixture
def model():
    ids = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 4, name="embedding")(ids)
    x = keras.layers.EinsumDense("btd,dhn->bthn", (None, 2, 3), name="heads")(x)
    return keras.Model(ids, keras.layers.Dense(2, name="dense")(x))


def test_without_a_lora_no_kernel_is_merged(model):
    assert merged_kernels(model) == {}
    dense = model.get_layer("dense")
    assert own_variable(dense) is dense.kernel


@pytest.mark.parametrize(
    ("name", "variable"), [("embedding", "embeddings"), ("heads", "kernel"), ("dense", "kernel")]
)
def test_a_kernel_is_read_with_its_lora_and_filled_without(model, name, variable):
    layer = model.get_layer(name)
    frozen_kernel = keras.ops.convert_to_numpy(getattr(layer, variable))
    layer.enable_lora(2)
    for adapter in layer.trainable_variables:
        adapter.assign(np.random.default_rng(0).normal(size=adapter.shape))
    kernel = own_variable(layer, variable)
    ((identity, compute),) = merged_kernels(model).items()
    assert identity == id(kernel)
    assert np.array_equal(keras.ops.convert_to_numpy(kernel), frozen_kernel)
    merged = keras.ops.convert_to_numpy(compute())
    assert merged.shape == frozen_kernel.shape
    assert np.abs(merged - frozen_kernel).max() > 0.1
    assert np.array_equal(merged, keras.ops.convert_to_numpy(getattr(layer, variable)))


def test_a_variable_that_is_not_there_is_told_with_those_that_are(model):
    with pytest.raises(
        InvalidInputError, match=r"'dense' has no variable 'scale', only \['kernel'"
    ):
        own_variable(model.get_layer("dense"), "scale")

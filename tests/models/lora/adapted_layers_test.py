import keras
import pytest

from keras_deepseek.models import enable_lora
from keras_deepseek.models.lora.adapted_layers import (
    find_adapted,
    find_candidates,
    kernel_of,
    lora_variables,
    path_of,
)


@pytest.mark.parametrize(
    ("layer", "shape", "name"),
    [
        (keras.layers.Dense(3, name="own"), (2, 5), "own/kernel"),
        (keras.layers.EinsumDense("ab,bhc->ahc", (2, 3), name="own"), (2, 5), "own/kernel"),
        (keras.layers.Embedding(7, 3, name="own"), (2,), "own/embeddings"),
    ],
    ids=["Dense", "EinsumDense", "Embedding"],
)
def test_the_kernel_and_the_two_matrices_of_a_layer(layer, shape, name):
    layer.build(shape)
    assert kernel_of(layer).path == name
    assert path_of(layer) == "own"
    layer.enable_lora(2)
    a, b = lora_variables(layer)
    assert a.shape[:-1] == kernel_of(layer).shape[:-1]
    assert tuple(b.shape) == (2, kernel_of(layer).shape[-1])
    assert kernel_of(layer).path == name


def test_layers_are_found_before_and_after():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.ReLU()])
    assert find_candidates(model) == [model.layers[0]]
    assert find_adapted(model) == []
    enable_lora(model, 1)
    assert find_candidates(model) == find_adapted(model) == [model.layers[0]]


def test_layers_come_in_the_models_order():
    names = ["first", "second", "third"]
    dense = [keras.layers.Dense(3, name=name) for name in names]
    model = keras.Sequential([keras.Input((3,)), *dense[:1], keras.Sequential(dense[1:])])
    assert [layer.name for layer in find_candidates(model)] == names
    enable_lora(model, 1)
    assert [layer.name for layer in find_adapted(model)] == names

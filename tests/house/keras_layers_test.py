"""`keras_deepseek.layers` has every public layer of the installed Keras."""

import keras
import pytest

from keras_deepseek import layers

PUBLIC = sorted(name for name in dir(keras.layers) if not name.startswith("_"))


def test_common_layers_are_the_classes_of_keras():
    from keras_deepseek.layers import GRU, Conv2D, Dense, LayerNorm, deserialize

    assert Dense is keras.layers.Dense
    assert Conv2D is keras.layers.Conv2D
    assert GRU is keras.layers.GRU
    assert deserialize is keras.layers.deserialize
    assert LayerNorm is keras.layers.LayerNormalization


def test_each_public_name_of_keras_is_there_and_listed():
    assert [
        name for name in PUBLIC if getattr(layers, name) is not getattr(keras.layers, name)
    ] == []
    assert set(PUBLIC) <= set(layers.__all__)
    assert set(PUBLIC) <= set(dir(layers))


def test_the_list_of_names_is_sorted_and_without_repetition():
    assert layers.__all__ == sorted(set(layers.__all__))


def test_a_star_import_brings_every_name():
    names = {}
    exec("from keras_deepseek.layers import *", names)
    assert set(layers.__all__) <= set(names)


def test_a_layer_that_a_later_keras_adds_is_there(monkeypatch):
    layer = type("Newer", (keras.layers.Layer,), {})
    monkeypatch.setattr(keras.layers, "Newer", layer, raising=False)
    assert layers.Newer is layer


@pytest.mark.parametrize("name", ["Conv9D", "_private"])
def test_an_unknown_name_is_an_attribute_error_that_names_the_installed_keras(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}', nor has keras.layers of the"):
        getattr(layers, name)

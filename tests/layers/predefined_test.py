import keras
import pytest

from keras_deepseek import layers
from keras_deepseek.layers import predefined

CLAHE = "ContrastLimitedAdaptiveHistogramEqualization"


def test_the_layers_people_ask_for_are_keras_own_classes():
    from keras_deepseek.layers import (
        GRU,
        LSTM,
        Conv2D,
        Dropout,
        GroupQueryAttention,
        LayerNorm,
        MultiHeadAttention,
        RMSNormalization,
    )

    assert Conv2D is keras.layers.Conv2D
    assert LSTM is keras.layers.LSTM
    assert GRU is keras.layers.GRU
    assert Dropout is keras.layers.Dropout
    assert LayerNorm is keras.layers.LayerNormalization
    assert MultiHeadAttention is keras.layers.MultiHeadAttention
    assert GroupQueryAttention is keras.layers.GroupQueryAttention
    assert RMSNormalization is keras.layers.RMSNormalization


@pytest.mark.parametrize("name", predefined.__all__)
def test_each_name_is_the_object_of_keras(name):
    keras_name = "LayerNormalization" if name == "LayerNorm" else name
    assert getattr(layers, name) is getattr(keras.layers, keras_name)
    assert name in layers.__all__


def test_every_layer_of_the_installed_keras_is_handed_on_or_known_to_be_newer():
    public = {name for name in dir(keras.layers) if not name.startswith("_")}
    assert public - set(predefined.__all__) <= {CLAHE}


def test_the_list_of_names_is_sorted_and_without_repetition():
    assert layers.__all__ == sorted(set(layers.__all__))


def test_a_newer_layer_is_given_where_keras_has_it(monkeypatch):
    layer = type("Newer", (keras.layers.Layer,), {})
    monkeypatch.setattr(keras.layers, CLAHE, layer, raising=False)
    assert getattr(layers, CLAHE) is layer


def test_a_newer_layer_says_which_keras_it_needs(monkeypatch):
    monkeypatch.delattr(keras.layers, CLAHE, raising=False)
    with pytest.raises(AttributeError, match=r"needs Keras 3\.14 or later; Keras \S+ is installed"):
        getattr(layers, CLAHE)


def test_an_unknown_layer_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Conv9D'"):
        getattr(layers, "Conv9D")  # noqa: B009 - the name is wrong on purpose

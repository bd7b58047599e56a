import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.named_layers import are_names, find_named_layers


def make_model():
    inner = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, name="dense_in"), keras.layers.ReLU(name="relu")],
        name="block_1",
    )
    return keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(1, name="dense_out")])


def test_layers_at_any_depth_are_found_by_patterns():
    found = find_named_layers(make_model(), "remat", ["dense_*", "block_?"])
    assert {layer.name for layer in found} == {"block_1", "dense_in", "dense_out"}
    assert find_named_layers(make_model(), "remat", []) == []


def test_a_pattern_of_no_layer_is_refused_with_the_names_that_there_are():
    with pytest.raises(InvalidInputError, match=r"remat='conv_\*' names no layer .* dense_in"):
        find_named_layers(make_model(), "remat", ["conv_*"])


def test_one_string_is_no_list_of_names():
    assert are_names(["a", "b"])
    assert not any(map(are_names, ("a", [1], None)))

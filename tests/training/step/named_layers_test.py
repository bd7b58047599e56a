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
    layers = find_named_layers(make_model(), "remat", ["dense_*", "block_?"])
    assert {layer.name for layer in layers} == {"block_1", "dense_in", "dense_out"}
    assert find_named_layers(make_model(), "remat", []) == []


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(InvalidInputError, match=r"remat='conv_\*' names no layer .* dense_in"):
        find_named_layers(make_model(), "remat", ["conv_*"])


def test_a_string_is_not_a_list_of_names():
    assert are_names(["a", "b"])
    assert not any(map(are_names, ("a", [1], None)))

import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.layer_devices import check_pattern, find_layer_devices, matches


class Block(keras.layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs):
        return inputs + self.inner(inputs)


def dense(name):
    return keras.layers.Dense(4, name=name)


def build(*layers):
    inputs = outputs = keras.Input((4,))
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def find(devices, *layers):
    return {each.layer.name: each for each in find_layer_devices(build(*layers), devices)}


def test_the_first_pattern_counts_and_others_have_the_first_device():
    found = find(
        {"encoder*": "gpu:0", "encoder_[12]": "gpu:1", "decoder.*": "gpu:2"},
        *map(dense, ("encoder_1", "middle", "decoder_1", "decoder")),
    )
    devices = {name: each.device for name, each in found.items()}
    assert devices["encoder_1"] == devices["middle"] == "gpu:0"
    assert devices["decoder_1"] == devices["decoder"] == "gpu:2"


def test_a_layer_inside_has_the_device_of_the_outer_one_unless_it_is_matched():
    found = find(
        {"other": "gpu:0", "block_?": "gpu:1", "home": "gpu:0"},
        *(dense("other"), Block(dense("inside"), name="block_1")),
        Block(Block(dense("deep"), name="home"), name="block_2"),
    )
    devices = {name: each.device for name, each in found.items()}
    assert devices["inside"] == devices["block_2"] == "gpu:1"
    assert devices["deep"] == devices["home"] == "gpu:0"
    assert [name for name, each in found.items() if each.is_away] == ["block_1", "block_2", "home"]
    # What a block adds up must be on its own device; a functional model hands on what it gets.
    assert found["home"].comes_back
    assert not found["block_1"].comes_back
    assert not found["inside"].meets_others
    assert found["other"].meets_others


def test_a_layer_of_two_is_away_if_one_of_them_is_elsewhere():
    shared = dense("shared")
    found = find(
        {"first": "gpu:0", "second": "gpu:1"},
        Block(shared, name="first"),
        Block(shared, name="second"),
    )
    assert found["shared"].device == "gpu:0"
    assert found["shared"].is_away


def test_layers_of_models_inside_are_found():
    inner = keras.Sequential([dense("deep_1"), dense("deep_2")], name="inner")
    found = find({"rest": "gpu:0", "deep_2": "gpu:1"}, dense("rest"), inner)
    assert found["deep_2"].is_away
    assert found["deep_1"].device == "gpu:0"
    assert not found["deep_1"].is_away


def test_a_pattern_of_no_layer_gets_the_nearest_names():
    with pytest.raises(InvalidInputError, match="Unknown layer in device_map 'encodr': did you"):
        find({"encodr": "gpu:0"}, dense("encoder"), dense("decoder"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("block_*", ["block_1", "block_12"]),
        ("block_?", ["block_1"]),
        ("block_[0-9]+", ["block_1", "block_12"]),
        ("block.*", ["block_1", "block_12", "block"]),
        ("block|1_block", ["block", "1_block"]),
        ("block", ["block"]),
        ("a.b", ["a.b", "a+b"]),
        ("a+b", ["a+b"]),
    ],
)
def test_patterns_are_those_of_remat_or_regular_expressions_for_all_of_a_name(pattern, names):
    known = ["block", "block_1", "block_12", "1_block", "a.b", "a+b"]
    assert sorted(name for name in known if matches(name, pattern)) == sorted(names)


def test_what_is_no_regular_expression_is_refused():
    check_pattern("*_norm")  # Nor is it meant as one.
    with pytest.raises(
        InvalidInputError, match=r"device_map\['block\.\('\] is not a valid regular expr"
    ):
        check_pattern("block.(")

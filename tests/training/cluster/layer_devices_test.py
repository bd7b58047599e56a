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
    return {
        layer_device.layer.name: layer_device
        for layer_device in find_layer_devices(build(*layers), devices)
    }


def test_the_first_pattern_counts_and_others_have_the_first_device():
    layer_devices = find(
        {"encoder*": "gpu:0", "encoder_[12]": "gpu:1", "decoder.*": "gpu:2"},
        *map(dense, ("encoder_1", "middle", "decoder_1", "decoder")),
    )
    devices = {name: layer_device.device for name, layer_device in layer_devices.items()}
    assert devices["encoder_1"] == devices["middle"] == "gpu:0"
    assert devices["decoder_1"] == devices["decoder"] == "gpu:2"


def test_a_layer_inside_has_the_device_of_the_outer_one_unless_it_is_matched():
    layer_devices = find(
        {"other": "gpu:0", "block_?": "gpu:1", "home": "gpu:0"},
        *(dense("other"), Block(dense("inside"), name="block_1")),
        Block(Block(dense("deep"), name="home"), name="block_2"),
    )
    devices = {name: layer_device.device for name, layer_device in layer_devices.items()}
    assert devices["inside"] == devices["block_2"] == "gpu:1"
    assert devices["deep"] == devices["home"] == "gpu:0"
    assert [name for name, layer_device in layer_devices.items() if layer_device.is_away] == [
        "block_1",
        "block_2",
        "home",
    ]
    # What a block adds up must be on its own device; a functional model hands on what it gets.
    assert layer_devices["home"].comes_back
    assert not layer_devices["block_1"].comes_back
    assert not layer_devices["inside"].meets_others
    assert layer_devices["other"].meets_others


def test_a_layer_of_two_is_away_if_one_of_them_is_elsewhere():
    shared = dense("shared")
    layer_devices = find(
        {"first": "gpu:0", "second": "gpu:1"},
        Block(shared, name="first"),
        Block(shared, name="second"),
    )
    assert layer_devices["shared"].device == "gpu:0"
    assert layer_devices["shared"].is_away


def test_layers_of_models_inside_are_found():
    inner = keras.Sequential([dense("deep_1"), dense("deep_2")], name="inner")
    layer_devices = find({"rest": "gpu:0", "deep_2": "gpu:1"}, dense("rest"), inner)
    assert layer_devices["deep_2"].is_away
    assert layer_devices["deep_1"].device == "gpu:0"
    assert not layer_devices["deep_1"].is_away


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
    layer_names = ["block", "block_1", "block_12", "1_block", "a.b", "a+b"]
    assert sorted(name for name in layer_names if matches(name, pattern)) == sorted(names)


def test_what_is_no_regular_expression_is_refused():
    check_pattern("*_norm")  # Nor is it meant as one.
    with pytest.raises(
        InvalidInputError, match=r"device_map\['block\.\('\] is not a valid regular expr"
    ):
        check_pattern("block.(")

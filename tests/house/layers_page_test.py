"""docs/how_to/choose_a_layer.md names every layer of ours."""

import keras

from keras_deepseek import layers


def test_every_layer_is_named(root):
    page = (root / "docs/how_to/choose_a_layer.md").read_text(encoding="utf-8")
    ours = set(layers.__all__) - set(dir(keras.layers)) - {"LayerNorm"}
    assert {name for name in ours if f"`{name}" not in page} == set()

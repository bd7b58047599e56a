"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.attention import (
    attend,
    attention_projections,
    uses_flash_attention,
)


@pytest.mark.parametrize(
    "attention",
    [keras.layers.MultiHeadAttention(2, 3), keras.layers.GroupQueryAttention(3, 2, 2)],
)
def test_the_parts_of_an_attention_layer_make_the_whole(attention):
    inputs = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    expected = attention(inputs, inputs, use_causal_mask=True)
    parts = attention_projections(attention)
    assert list(parts) == ["query", "key", "value", "output"]
    projected = [parts[name](inputs) for name in ("query", "key", "value")]
    heads = attend(attention, *projected, np.tri(4, dtype=bool)[None], training=False)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(parts["output"](heads)),
        keras.ops.convert_to_numpy(expected),
        atol=1e-6,
    )


def test_a_layer_says_whether_it_was_told_to_use_flash_attention():
    for choice in (None, False, True):
        attention = keras.layers.MultiHeadAttention(2, 3, flash_attention=choice)
        assert uses_flash_attention(attention) == bool(choice)

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.errors import ExportError
from keras_deepseek.graph.optimized_model import OptimizedModel
from keras_deepseek.graph.portable_model import make_portable
from keras_deepseek.graph.trace import as_symbols


class Causal(layers.Layer):
    """A layer without `get_config` that reads the length."""

    def __init__(self, size):
        super().__init__()
        self.positions, self.attention = layers.Embedding(size, 8), layers.MultiHeadAttention(2, 4)

    def call(self, x):
        x = x + self.positions(ops.arange(ops.shape(x)[1]))
        mask = ops.tril(ops.ones((ops.shape(x)[1], ops.shape(x)[1]), "bool"))
        return self.attention(x, x, attention_mask=mask[None])


class Doubled(layers.Layer):
    """A layer that writes products of sizes into one reshape."""

    def __init__(self):
        super().__init__()

    def call(self, x):
        batch, height, width, _ = ops.shape(x)
        x = ops.transpose(ops.reshape(x, (batch, height, width, 2, 2, 1)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, 2 * height, 2 * width, 1))


def text():
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = Causal(6)(layers.Embedding(20, 8)(tokens))
    return keras.Model(tokens, [layers.Dense(2, name="score")(x), x]), np.ones((3, 6), "int32")


def image():
    model = keras.Sequential([keras.Input((4, 6, 4)), layers.BatchNormalization(), Doubled()])
    return model, np.random.default_rng(0).normal(size=(3, 4, 6, 4)).astype("float32")


def optimized():
    model, x = text()
    return OptimizedModel(model, as_symbols(ops.convert_to_tensor(x)), passes=["identities"]), x


def open_sizes():
    image = keras.Input((None, None, 4))
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 4)).astype("float32")
    return keras.Model(image, Doubled()(layers.BatchNormalization()(image))), x


def open_length():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    return keras.Model(tokens, Causal(40)(layers.Embedding(20, 8)(tokens))), np.ones(
        (3, 6), "int32"
    )


@pytest.mark.parametrize("build", [text, image, optimized, open_sizes, open_length])
def test_a_saved_portable_model_computes_the_same(build, tmp_path):
    model, x = build()
    named = NamedModel(model)
    portable = make_portable(model, named.signature, x)
    portable.save(tmp_path / "model.keras")
    loaded = NamedModel(keras.saving.load_model(tmp_path / "model.keras"))
    # A program does not know the vocabulary of its inputs.
    inputs = tuple(replace(spec, vocabulary_size=None) for spec in named.signature.inputs)
    assert loaded.signature == replace(named.signature, inputs=inputs)
    longer = x if None not in named.signature.inputs[0].shape[1:] else np.concatenate([x, x], 1)
    batch = {named.signature.inputs[0].name: longer[[0, 2, 1, 1]]}
    expected, received = named(batch), loaded(batch)
    for name, array in expected.items():
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (received[name], array)), atol=1e-6
        )


class Branching(layers.Layer):
    """A layer that chooses by a size."""

    def call(self, x):
        return x * 2.0 if x.shape[1] > 12 else x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_a_size_by_which_a_layer_chooses_is_refused():
    image = keras.Input((None, None, 4))
    model = keras.Model(image, Branching()(image))
    with pytest.raises(ExportError, match=r"leave open.*something else with"):
        make_portable(model, NamedModel(model).signature, np.ones((2, 4, 6, 4), "float32"))

"""The corpus of models for `graph.optimize`: those of the export matrix, and further ones."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from integration_tests.export_matrix import models as export_matrix
from integration_tests.export_matrix.custom_layers import Residual
from keras_deepseek.backend.keras_private.layers import flatten_layers, functional_graph

VOCABULARY = 30


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6, 5)),
            layers.Dense(8, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )


def first_token_classifier() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 16)(tokens)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.Dropout(0.1)(layers.MultiHeadAttention(2, 8, dropout=0.1)(y, y))
        y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dropout(0.1)(layers.Dense(16)(y))
    return keras.Model(tokens, layers.Dense(3, activation="softmax")(x[:, 0]))


def lora() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32")
    adapted = (
        layers.Embedding(VOCABULARY, 16),
        layers.EinsumDense("btd,df->btf", (None, 24), bias_axes="f"),
        layers.Dense(3),
    )
    embedding, einsum_dense, dense = adapted
    model = keras.Model(tokens, dense(einsum_dense(embedding(tokens))))
    for layer in adapted:
        layer.enable_lora(2)
    return model


def gru_with_initial_state() -> keras.Model:
    signal, state = keras.Input((7, 5), name="signal"), keras.Input((8,), name="state")
    x, last = layers.GRU(8, return_sequences=True, return_state=True)(signal, initial_state=state)
    return keras.Model([signal, state], [layers.Dense(3)(x), last])


def stateful_lstm() -> keras.Model:
    signal = keras.Input(batch_shape=(4, 6, 5))
    return keras.Model(signal, layers.Dense(3)(layers.LSTM(8, stateful=True)(signal)))


def frozen_batch_norm() -> keras.Model:
    x = image = keras.Input((12, 12, 3))
    for _ in range(2):
        x = layers.Conv2D(8, 3, use_bias=False)(x)
        x = layers.BatchNormalization(trainable=False)(x)
    return keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def nested_subclassed() -> keras.Model:
    inner = keras.Input((12,))
    tower = keras.Model(inner, layers.Dense(12)(Residual()(inner)["sum"]))
    features = keras.Input((12,))
    outputs = Residual()(tower(features))
    return keras.Model(features, [outputs["hidden"], tower(outputs["sum"])])


def duplicated_branches() -> keras.Model:
    image = keras.Input((12, 12, 3))
    shared = layers.Conv2D(8, 3, activation="relu")
    pooled = [layers.GlobalAveragePooling2D()(shared(image)) for _ in range(2)]
    return keras.Model(image, layers.Dense(3)(layers.Concatenate()(pooled)))


def kerashub_llama() -> keras.Model:
    keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
    )
    return keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None)


def kerashub_vit() -> keras.Model:
    keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    return keras_hub.models.ViTImageClassifier(backbone=backbone, num_classes=3)


def kerashub_bert_classifier() -> keras.Model:
    keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=32,
    )
    return keras_hub.models.BertTextClassifier(backbone=backbone, num_classes=2)


BUILDERS = {
    **export_matrix.MODELS,
    **{
        builder.__name__: builder
        for builder in (
            sequential,
            first_token_classifier,
            lora,
            gru_with_initial_state,
            stateful_lstm,
            frozen_batch_norm,
            nested_subclassed,
            duplicated_branches,
            kerashub_llama,
            kerashub_vit,
            kerashub_bert_classifier,
        )
    },
}


def build(name: str, policy: str) -> keras.Model:
    """Returns a model whose weights are random, also those that are zeros or ones at first."""
    if name == "nasnet" and keras.backend.backend() == "torch":
        pytest.skip("Keras has no NASNetMobile on PyTorch.")

    def make() -> keras.Model:
        keras.config.set_dtype_policy(policy)  # Keras forgets it in `clear_session`.
        return BUILDERS[name]()

    try:
        return export_matrix.build_randomly(make)
    finally:
        keras.config.set_dtype_policy("float32")


def draw_inputs(model: keras.Model, rows: int, length: int) -> Any:
    """Returns random inputs. The rows of integers end in zeros, as padding does."""
    random = np.random.default_rng(rows)
    vocabulary = min(
        (layer.input_dim for layer in flatten_layers(model) if hasattr(layer, "input_dim")),
        default=VOCABULARY,
    )

    def draw(symbol: keras.KerasTensor) -> Any:
        shape = tuple(size or length for size in symbol.shape[1:])
        shape = (symbol.shape[0] or rows, *shape)
        if symbol.dtype.startswith(("float", "bfloat")):
            return random.normal(size=shape).astype("float32")
        largest = export_matrix.RANGES.get(symbol.name, vocabulary)
        array = random.integers(0 if symbol.dtype == "bool" else 1, largest, shape)
        if len(shape) == 2:
            for row in range(1, len(array)):
                array[row, random.integers(1, shape[1]) :] = 0
        return array.astype(symbol.dtype)

    functional = functional_graph(model)
    if functional is None:  # `Residual`, which was called on features.
        return draw(keras.KerasTensor((None, 12)))
    return keras.tree.map_structure(draw, functional.input)

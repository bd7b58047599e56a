"""Encoders of BERT's shape, with the blocks of `BertMaskedLM`.

Not that model itself: rows may hold several documents, so that positions and who sees whom are
inputs of their own.
"""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops
from masked_text import IGNORED, VOCABULARY_SIZE

from keras_deepseek.layers import ChunkedCrossEntropy, MaskedPositionHead
from keras_deepseek.models.encoder.transformer_encoder import TransformerEncoderBlock

LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 0.01, 1.0
EPSILON = 1e-8
"""Of Adam: PyTorch's, not Keras's 1e-7, which holds back the logits of the many rare words."""


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder, and how much of what is computed in training is dropped."""

    num_layers: int = 4
    hidden_dim: int = 768
    num_heads: int = 12
    vocabulary_size: int = VOCABULARY_SIZE
    longest: int = 512
    dropout: float = 0.1

    @property
    def intermediate_dim(self) -> int:
        """The width of the inner layer of the feed-forward networks."""
        return 4 * self.hidden_dim


def build(
    shape: Shape,
    *,
    has_masked_head: bool,
    has_chunked_loss: bool = False,
    dtype: str | None = None,
) -> keras.Model:
    """Returns an encoder with a head of BERT in pretraining: logits of tokens.

    It is compiled with the loss alone, the mean over masked tokens.

    Args:
        shape: `Shape`.
        has_masked_head: boolean. Whether the head sees the `mask_positions` alone, an input then.
        has_chunked_loss: boolean. Whether the head computes the loss as well, chunk by chunk; then
            `targets` are an input. Defaults to `False`.
        dtype: string. The dtype policy. Defaults to `None`, Keras's own.
    """
    layers = keras.layers
    names = ["token_ids", "segment_ids", "positions"]
    names += ["mask_positions"] if has_masked_head else []
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    normal = keras.initializers.RandomNormal(stddev=0.02)

    def embed(size: int, name: str) -> keras.layers.Embedding:
        return layers.Embedding(size, shape.hidden_dim, normal, name=name, dtype=dtype)

    def normalize(tensor: Any) -> Any:
        return layers.LayerNormalization(epsilon=1e-12, dtype=dtype)(tensor)

    def drop(tensor: Any) -> Any:
        return layers.Dropout(shape.dropout, dtype=dtype)(tensor)

    embedding = layers.Embedding if has_masked_head else layers.ReversibleEmbedding
    tokens = embedding(
        shape.vocabulary_size,
        shape.hidden_dim,
        embeddings_initializer=normal,
        name="token_embedding",
        dtype=dtype,
    )
    hidden = tokens(inputs["token_ids"])
    hidden = hidden + embed(shape.longest, "position_embedding")(inputs["positions"])
    hidden = hidden + embed(2, "type_embedding")(ops.zeros_like(inputs["token_ids"]))
    hidden = drop(normalize(hidden))
    segments = inputs["segment_ids"]
    sees = ops.equal(ops.expand_dims(segments, 2), ops.expand_dims(segments, 1))
    for index in range(shape.num_layers):
        block = TransformerEncoderBlock(
            shape.num_heads,
            shape.intermediate_dim,
            dropout=shape.dropout,
            attention_dropout=shape.dropout,
            kernel_initializer=normal,
            name=f"block_{index}",
            dtype=dtype,
        )
        hidden = block(hidden, sees)
    if has_masked_head:
        head = MaskedPositionHead(
            token_embedding=tokens,
            intermediate_activation="gelu",
            epsilon=1e-12,
            kernel_initializer=normal,
            dtype=dtype,
        )
        logits = head(hidden, inputs["mask_positions"])
    elif has_chunked_loss:
        inputs["targets"] = keras.Input((None,), dtype="int32", name="targets")
        dense = layers.Dense(shape.hidden_dim, "gelu", kernel_initializer=normal, dtype=dtype)
        loss = ChunkedCrossEntropy(
            token_embedding=tokens,
            chunk_size=256,
            ignore_class=IGNORED,
            use_bias=True,
            dtype=dtype,
        )
        model = keras.Model(inputs, loss(normalize(dense(hidden)), inputs["targets"]))
        model.compile()
        return model
    else:
        dense = layers.Dense(shape.hidden_dim, "gelu", kernel_initializer=normal, dtype=dtype)
        logits = _AddBias(dtype=dtype)(tokens(normalize(dense(hidden)), reverse=True))
    model = keras.Model(inputs, logits)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    )
    return model


class _AddBias(keras.layers.Layer):
    """Adds a number to the logits of each token."""

    def build(self, input_shape: Any) -> None:
        self.bias = self.add_weight(shape=(input_shape[-1],), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        return inputs + self.bias

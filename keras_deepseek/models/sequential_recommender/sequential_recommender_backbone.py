"""The backbone of sequential recommenders, which turns item histories into hidden states."""

from typing import Any, ClassVar

import keras
from keras import ops

from keras_deepseek.layers import Dropout, Input, LayerNormalization, ReversibleEmbedding
from keras_deepseek.models.config_model import ConfigModel, read_policy
from keras_deepseek.models.encoder.transformer_encoder import (
    PositionEmbedding,
    TransformerEncoderBlock,
)
from keras_deepseek.models.sequential_recommender.config import SequentialRecommenderConfig


@keras.saving.register_keras_serializable("keras_deepseek")
class SequentialRecommenderBackbone(ConfigModel):
    """Causal self-attention over a user's history of items.

    Choose it to build another head than `SequentialRecommender`'s. The hidden state at an item
    depends on that item and those before it. Positions count from the newest item, so that
    histories of different lengths, padded on the left, have the same positions at their end.

    Other code may use these attributes: `item_embedding`, `transformer_layers`, the list of blocks,
    and `final_norm`.

    Args:
        config: `SequentialRecommenderConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of `"item_ids"`: integer tensor of shape `(batch_size, length)`, oldest item
            first, padded with 0 on the left.

    Returns:
        The hidden states, of shape `(batch_size, length, hidden_dim)`.

    Raises:
        InvalidInputError: Histories are longer than the config's `max_length`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import SequentialRecommenderBackbone, SequentialRecommenderConfig
    >>> config = SequentialRecommenderConfig.from_preset("tiny", num_items=100)
    >>> backbone = SequentialRecommenderBackbone(config)
    >>> tuple(backbone({"item_ids": np.array([[0, 0, 7], [3, 1, 7]])}).shape)
    (2, 3, 32)

    Reference:

    - [Self-Attentive Sequential Recommendation (Kang and McAuley, 2018)](
      https://arxiv.org/abs/1808.09781)
    """

    config_class: ClassVar[type] = SequentialRecommenderConfig

    def __init__(
        self, config: SequentialRecommenderConfig, *, dtype: Any = None, **kwargs: Any
    ) -> None:
        policy = read_policy(dtype)

        def make_initializer() -> keras.initializers.Initializer:
            return keras.initializers.TruncatedNormal(stddev=config.initializer_range)

        def make_norm(name: str) -> keras.Layer:
            return LayerNormalization(epsilon=config.epsilon, dtype=policy, name=name)

        item_embedding = ReversibleEmbedding(
            config.num_items + 1,
            config.hidden_dim,
            embeddings_initializer=make_initializer(),
            dtype=policy,
            name="item_embedding",
        )
        positions = PositionEmbedding(
            config.max_length,
            counts_from_end=True,
            embeddings_initializer=make_initializer(),
            dtype=policy,
            name="position_embedding",
        )
        blocks = [
            TransformerEncoderBlock(
                config.num_heads,
                config.intermediate_dim,
                activation=config.activation,
                dropout=config.dropout,
                attention_dropout=config.dropout,
                epsilon=config.epsilon,
                normalize_first=True,
                kernel_initializer=make_initializer(),
                dtype=policy,
                name=f"transformer_layer_{index}",
            )
            for index in range(config.num_layers)
        ]
        final_norm = make_norm("final_norm")

        inputs = {"item_ids": Input((None,), dtype="int32", name="item_ids")}
        # Good logits may need small item vectors. The norm keeps the blocks' inputs large.
        hidden = make_norm("embeddings_norm")(positions(item_embedding(inputs["item_ids"])))
        hidden = Dropout(config.dropout, dtype=policy, name="embeddings_drop")(hidden)
        attention_mask = HistoryMask(dtype="float32", name="history_mask")(inputs["item_ids"])
        for block in blocks:
            hidden = block(hidden, attention_mask)
        super().__init__(inputs, final_norm(hidden), **kwargs)
        self.config = config
        self.layers_policy = policy
        self.item_embedding = item_embedding
        self.position_embedding = positions
        self.transformer_layers = blocks
        self.final_norm = final_norm


@keras.saving.register_keras_serializable("keras_deepseek")
class HistoryMask(keras.Layer):
    """A layer that returns a causal mask: each item attends to itself and earlier items.

    No item attends to padding. Padding attends to itself, because fused attention returns NaN for a
    row without anything to attend to. Item ids are `(batch_size, length)`, 0 for padding; the mask
    is `(batch_size, length, length)`.
    """

    def call(self, item_ids: Any) -> Any:
        indices = ops.arange(ops.shape(item_ids)[1])
        columns, rows = ops.expand_dims(indices, 0), ops.expand_dims(indices, 1)
        is_real = ops.expand_dims(ops.not_equal(item_ids, 0), 1)
        is_earlier = ops.logical_and(ops.less(columns, rows), is_real)
        return ops.logical_or(is_earlier, ops.equal(columns, rows))

    def compute_output_spec(self, item_ids: Any) -> Any:
        return keras.KerasTensor((*item_ids.shape, item_ids.shape[1]), dtype="bool")

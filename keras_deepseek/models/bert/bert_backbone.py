"""The backbone of BERT, which turns token ids into hidden states."""

from typing import Any, ClassVar

import keras
from keras import ops

from keras_deepseek.layers import (
    Add,
    Dropout,
    Embedding,
    Input,
    LayerNormalization,
    ReversibleEmbedding,
)
from keras_deepseek.models.bert.config import BertConfig
from keras_deepseek.models.config_model import ConfigModel, check_ids, read_policy
from keras_deepseek.models.encoder.transformer_encoder import (
    PositionEmbedding,
    TransformerEncoderBlock,
)


class SegmentedModel(ConfigModel):
    """A `ConfigModel` whose input `"segment_ids"` may be left out if all tokens are in segment 0.

    Both `__call__` and `call` fill it in: Keras checks the names of inputs in `__call__`, and on
    JAX it trains with `call` alone.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self._with_segments(inputs), *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(self._with_segments(inputs), training=training, mask=mask)

    def _with_segments(self, inputs: Any) -> Any:
        if not isinstance(inputs, dict) or "segment_ids" in inputs or "token_ids" not in inputs:
            return inputs
        check_ids(self.inputs, inputs)
        # The product has the type of the tokens: Keras does not take both arrays and tensors.
        return {**inputs, "segment_ids": 0 * inputs["token_ids"]}


INPUTS = ("token_ids", "padding_mask", "segment_ids")


@keras.saving.register_keras_serializable("keras_deepseek")
class BertBackbone(SegmentedModel):
    """An encoder in which each token attends to all others of its sequence.

    Choose it to build another head than `BertMaskedLM`'s. The embeddings of token, position and
    segment are added and normalized, and then go through blocks of attention and feed-forward
    networks with post-norms. There is no pooler.

    Other code may use these attributes: the layers `token_embedding`, `position_embedding`,
    `segment_embedding` and `embeddings_norm` before the blocks, and `transformer_layers`, the list
    of blocks.

    Args:
        config: `BertConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of integer tensors of shape `(batch_size, length)`: `"token_ids"`;
            `"padding_mask"`, 1 for tokens and 0 for padding; and `"segment_ids"`, which may be left
            out if all tokens are in segment 0. Pad on the right, since positions count slots.

    Returns:
        The hidden states, of shape `(batch_size, length, hidden_dim)`. Those of padding have no
        meaning.

    Raises:
        InvalidInputError: Sequences are longer than the config's `max_length`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import BertBackbone, BertConfig
    >>> backbone = BertBackbone(BertConfig.from_preset("tiny", vocabulary_size=50))
    >>> tokens = np.ones((2, 5), "int32")
    >>> tuple(backbone({"token_ids": tokens, "padding_mask": tokens}).shape)
    (2, 5, 128)

    Reference:

    - [BERT (Devlin et al., 2018)](https://arxiv.org/abs/1810.04805)
    """

    config_class: ClassVar[type] = BertConfig

    def __init__(self, config: BertConfig, *, dtype: Any = None, **kwargs: Any) -> None:
        policy = read_policy(dtype)
        inputs = {name: Input((None,), dtype="int32", name=name) for name in INPUTS}
        embeddings = _make_embeddings(config, policy)
        hidden = Add(dtype=policy, name="embeddings_sum")(
            [
                embeddings["token_embedding"](inputs["token_ids"]),
                embeddings["segment_embedding"](inputs["segment_ids"]),
            ]
        )
        hidden = embeddings["embeddings_norm"](embeddings["position_embedding"](hidden))
        hidden = Dropout(config.dropout, dtype=policy, name="embeddings_drop")(hidden)
        blocks = [
            TransformerEncoderBlock(
                config.num_heads,
                config.intermediate_dim,
                activation=config.activation,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                epsilon=config.epsilon,
                kernel_initializer=_make_initializer(config),
                dtype=policy,
                name=f"transformer_layer_{index}",
            )
            for index in range(config.num_layers)
        ]
        attention_mask = ops.expand_dims(ops.cast(inputs["padding_mask"], "bool"), 1)
        for block in blocks:
            hidden = block(hidden, attention_mask)
        super().__init__(inputs, hidden, **kwargs)
        self.config = config
        self.layers_policy = policy
        self.token_embedding = embeddings["token_embedding"]
        self.position_embedding = embeddings["position_embedding"]
        self.segment_embedding = embeddings["segment_embedding"]
        self.embeddings_norm = embeddings["embeddings_norm"]
        self.transformer_layers = blocks


def _make_embeddings(config: BertConfig, policy: Any) -> dict[str, keras.Layer]:
    """Makes BERT's embedding layers, those before the Transformer blocks, by name."""
    layers = [
        ReversibleEmbedding(
            config.vocabulary_size,
            config.hidden_dim,
            embeddings_initializer=_make_initializer(config),
            dtype=policy,
            name="token_embedding",
        ),
        Embedding(
            config.num_segments,
            config.hidden_dim,
            embeddings_initializer=_make_initializer(config),
            dtype=policy,
            name="segment_embedding",
        ),
        PositionEmbedding(
            config.max_length,
            embeddings_initializer=_make_initializer(config),
            dtype=policy,
            name="position_embedding",
        ),
        LayerNormalization(epsilon=config.epsilon, dtype=policy, name="embeddings_norm"),
    ]
    return {layer.name: layer for layer in layers}


def _make_initializer(config: BertConfig) -> keras.initializers.Initializer:
    """Returns a new weight initializer: a shared one would draw equal values for equal shapes."""
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)

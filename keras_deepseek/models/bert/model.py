"""The backbone of BERT, and its masked language model."""

from collections.abc import Collection
from typing import Any, ClassVar

import keras
from keras import ops

from keras_deepseek.checks import check_boolean
from keras_deepseek.layers import (
    Add,
    Dropout,
    Embedding,
    Input,
    LayerNormalization,
    MaskedPositionHead,
    ReversibleEmbedding,
)
from keras_deepseek.models.bert.checkpoint_map import IGNORED_TENSORS, checkpoint_entries
from keras_deepseek.models.bert.config import BERT, BertConfig
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.config_model import ConfigModel, check_ids, read_policy
from keras_deepseek.models.encoder.transformer_encoder import (
    PositionEmbedding,
    TransformerEncoderBlock,
    read_activation,
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


@keras.saving.register_keras_serializable("keras_deepseek")
class BertMaskedLM(SegmentedModel, PresetModel):
    """A BERT that returns logits of the vocabulary for each token, or for each masked token.

    Choose it to train on masked text, or to fill in masked tokens. The head is a dense layer, a
    norm, and the transposed token embedding with a bias.

    With `use_mask_positions` there is a further input, and logits are computed only at these
    positions, about one in seven: a faster way to train. `training.MaskedTokens` makes batches for
    both. Train with `SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)`.

    `from_preset` reads checkpoints of `BertForMaskedLM` and `BertForPreTraining`, including the
    first releases. It ignores the further heads of the latter. `save_to_preset` writes a checkpoint
    that `transformers` loads as `BertForMaskedLM`.

    Args:
        config: `BertConfig`.
        use_mask_positions: boolean. Whether to compute logits only at the input `"mask_positions"`.
            Defaults to `False`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of integer tensors of shape `(batch_size, length)`: `"token_ids"`;
            `"padding_mask"`, 1 for tokens and 0 for padding; and `"segment_ids"`, which may be left
            out if all tokens are in segment 0. With `use_mask_positions` also `"mask_positions"`,
            of shape `(batch_size, masks_per_sequence)`, filled up with -1.

    Returns:
        Logits of shape `(batch_size, length, vocabulary_size)`, or `(batch_size,
        masks_per_sequence, vocabulary_size)`.

    Raises:
        InvalidInputError: Sequences are longer than the config's `max_length`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import BertConfig, BertMaskedLM
    >>> model = BertMaskedLM(BertConfig.from_preset("tiny", vocabulary_size=50))
    >>> tokens = np.ones((2, 5), "int32")
    >>> tuple(model({"token_ids": tokens, "padding_mask": tokens}).shape)
    (2, 5, 50)

    Reference:

    - [BERT (Devlin et al., 2018)](https://arxiv.org/abs/1810.04805)
    """

    architectures = BERT.architectures
    config_class = BertConfig
    ignored_tensors = IGNORED_TENSORS

    def __init__(
        self,
        config: BertConfig,
        *,
        use_mask_positions: bool = False,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        check_boolean("use_mask_positions", use_mask_positions)
        backbone = BertBackbone(config, dtype=dtype, name="backbone")
        inputs = {name: Input((None,), dtype="int32", name=name) for name in INPUTS}
        hidden = backbone(inputs)
        head = MaskedPositionHead(
            None if config.tie_word_embeddings else config.vocabulary_size,
            backbone.token_embedding if config.tie_word_embeddings else None,
            intermediate_activation=read_activation(config.activation),
            epsilon=config.epsilon,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=config.initializer_range),
            dtype=backbone.layers_policy,
            name="masked_lm_head",
        )
        if use_mask_positions:
            inputs["mask_positions"] = Input((None,), dtype="int32", name="mask_positions")
            outputs = head(hidden, inputs["mask_positions"])
        else:
            outputs = head(hidden)
        super().__init__(inputs, outputs, **kwargs)
        self.config = config
        self.layers_policy = backbone.layers_policy
        self.backbone = backbone
        self.masked_lm_head = head
        self.use_mask_positions = use_mask_positions

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
        return checkpoint_entries(self.backbone, self.masked_lm_head, tensors)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "use_mask_positions": self.use_mask_positions}

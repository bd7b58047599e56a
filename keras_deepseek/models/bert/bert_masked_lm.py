"""BERT's masked language model: a backbone with a head that predicts masked tokens."""

from collections.abc import Collection
from typing import Any

import keras

from keras_deepseek.checks import check_boolean
from keras_deepseek.layers import Input, MaskedPositionHead
from keras_deepseek.models.bert.bert_backbone import INPUTS, BertBackbone, SegmentedModel
from keras_deepseek.models.bert.checkpoint_map import IGNORED_TENSORS, checkpoint_entries
from keras_deepseek.models.bert.config import BERT, BertConfig
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.encoder.transformer_encoder import read_activation


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

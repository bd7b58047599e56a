"""The task of DeepSeek-V3.2: from the tokens so far to the logits of the next."""

from collections.abc import Collection
from typing import Any, ClassVar

import keras

from keras_deepseek.layers import DeepSeekSparseAttention
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.decoder.deepseek_checkpoint_map import unread_predictions
from keras_deepseek.models.decoder.deepseek_layers import make_multi_token_prediction
from keras_deepseek.models.deepseek_v32.checkpoint_map import checkpoint_entries
from keras_deepseek.models.deepseek_v32.config import DeepSeekV32Config
from keras_deepseek.models.deepseek_v32.deepseek_v32_backbone import DeepSeekV32Backbone


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV32CausalLM(CausalLM):
    """DeepSeek-V3.2, which gives each place the logits of the token behind it.

    It is DeepSeek-V3 with attention over the few keys that an indexer chooses, for long contexts.
    Where the config has `num_prediction_layers`, training adds the loss of a `MultiTokenPrediction`
    of so many modules; outputs and decoding are as without.

    Args:
        config: `DeepSeekV32Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The policy of all layers; `None` takes the
            global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of `"token_ids"`, integers of shape `(batch_size, length)`, and
            `"padding_mask"` of the same shape, 0 where a token is padding.

    Returns:
        A tensor of shape `(batch_size, length, vocabulary_size)`, float32 or better. It carries the
        mask, so that a loss of Keras leaves padding out.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV32CausalLM, DeepSeekV32Config
    >>> model = DeepSeekV32CausalLM(DeepSeekV32Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 256)

    Reference:

    - [DeepSeek-V3.2 (DeepSeek-AI, 2025)](https://arxiv.org/abs/2512.02556)
    """

    architectures: ClassVar[tuple[str, ...]] = ("DeepseekV32ForCausalLM",)
    config_class: ClassVar[type] = DeepSeekV32Config
    float32_tensors: ClassVar[tuple[str, ...]] = ("*.e_score_correction_bias",)

    def __init__(self, config: DeepSeekV32Config, *, dtype: Any = None, **kwargs: Any) -> None:
        backbone = DeepSeekV32Backbone(config, dtype=dtype, name="backbone")
        prediction = make_multi_token_prediction(backbone, DeepSeekSparseAttention)
        super().__init__(backbone, multi_token_prediction=prediction, **kwargs)

    @property
    def ignored_tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Patterns of tensors that a checkpoint may hold beside those of the model."""
        return ("*.rotary_emb.inv_freq", *unread_predictions(self.config))

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
        return checkpoint_entries(self)

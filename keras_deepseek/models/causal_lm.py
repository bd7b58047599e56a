"""The task of all language models: from the tokens so far to the logits of the next."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import keras
from keras import ops

from keras_deepseek.artifacts.argument_check import check_integer
from keras_deepseek.layers import MultiTokenPrediction
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone, make_token_inputs
from keras_deepseek.models.decoder.multi_token_loss import MultiTokenLoss
from keras_deepseek.models.decoder.token_logits import TokenLogits


class CausalLM(PresetModel):
    """What the language models of all families are: a backbone, and logits by its embedding.

    A family names its config class and makes its backbone. Where it has modules that predict
    further tokens, their loss is added in training; the outputs stay those of the model alone.

    Args:
        backbone: `DecoderBackbone`.
        multi_token_prediction: `MultiTokenPrediction` that shares the embedding of the backbone, or
            `None`. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of `"token_ids"`, integers of shape `(batch_size, length)`, and
            `"padding_mask"` of the same shape, 0 where a token is padding.

    Returns:
        A tensor of shape `(batch_size, length, vocabulary_size)`, float32 or better: the logits of
        the token behind each.
    """

    def __init__(
        self,
        backbone: DecoderBackbone,
        *,
        multi_token_prediction: MultiTokenPrediction | None = None,
        **kwargs: Any,
    ) -> None:
        inputs = make_token_inputs()
        token_logits = TokenLogits(
            backbone.token_embedding, dtype=backbone.layers_policy, name="logits"
        )
        hidden_states, states = self.call_backbone(backbone, inputs)
        logits = token_logits(hidden_states)
        if multi_token_prediction is not None:
            loss = MultiTokenLoss(multi_token_prediction, name="multi_token_loss")
            mask = ops.not_equal(inputs["padding_mask"], 0)
            logits = loss(logits, states, inputs["token_ids"], mask=mask)
        super().__init__(inputs, logits, **kwargs)
        self.backbone = backbone
        self.config = backbone.config
        self.token_logits = token_logits
        self.multi_token_prediction = multi_token_prediction

    @staticmethod
    def call_backbone(backbone: DecoderBackbone, inputs: Any) -> tuple[Any, Any]:
        """Returns hidden states, and the states that modules which predict further tokens go by.

        Args:
            backbone: `DecoderBackbone`.
            inputs: dict of tensors, those of the model.
        """
        hidden_states = backbone(inputs)
        return hidden_states, hidden_states

    def make_cache(self, batch_size: int, max_length: int) -> list[Cache]:
        """Returns the empty caches of all layers, for `call_with_cache`.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. Number of tokens that they have room for, padding included.

        Raises:
            InvalidInputError: A size is not a positive integer; of a batch, zero is one.
        """
        return self.backbone.make_cache(batch_size, max_length)

    def call_with_cache(
        self,
        token_ids: Any,
        cache: Sequence[Cache],
        cache_index: Any,
        padding_mask: Any = None,
        positions: Any = None,
        num_logits: int | None = None,
    ) -> tuple[Any, Any, list[Cache]]:
        """Returns logits and hidden states of further tokens, and the caches with these written in.

        Args:
            token_ids: Integer tensor of shape `(batch_size, length)`.
            cache: list of dicts, as `make_cache` or an earlier call returned it.
            cache_index: integer or integer scalar tensor. The slot of the first token.
            padding_mask: Tensor of the shape of `token_ids`, 0 where a token is padding, or `None`
                for no padding. Defaults to `None`.
            positions: Integer tensor of the shape of `token_ids`, or `None` to count slots.
                Defaults to `None`.
            num_logits: integer, or `None` for all. Of how many of the last tokens logits are
                computed. Defaults to `None`.

        Returns:
            Three: logits of shape `(batch_size, num_logits, vocabulary_size)`, hidden states of
            shape `(batch_size, length, dim)`, and a list of dicts.

        Raises:
            InvalidInputError: The caches are not those of this model, or full, or `num_logits` is
                not positive.
        """
        hidden_states, written = self.backbone.call_with_cache(
            token_ids, cache, cache_index, padding_mask, positions
        )
        last = hidden_states
        if num_logits is not None:
            last = hidden_states[:, -check_integer("num_logits", num_logits) :]
        return self.token_logits(last), hidden_states, written

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "trainable": self.trainable,
            "config": asdict(self.config),
            "dtype": keras.dtype_policies.serialize(self.backbone.layers_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CausalLM":
        return cls(**{**config, "config": cls.config_class(**config["config"])})

"""A language model for packed rows, which hold several documents that do not see each other.

`training.pack_sequences` makes such rows, and `fit` trains the model on them.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.layers import Input
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.decoder.output_layers import MultiTokenLoss


def make_packed_model(model: CausalLM) -> keras.Model:
    """Returns a Functional model for packed rows that shares its layers with `model`.

    Choose it to train on documents of different lengths without padding. Training it trains
    `model`, which is called, saved and decoded with as before. Attention and positions stay within
    a document. The loss of modules that predict further tokens is added in training, also within
    each document. The loss that balances experts, `balance_loss`, is computed for a row.
    DeepSeek-V4 is not supported: its compressed entries mix the tokens of a row, whatever their
    documents.

    Args:
        model: A language model of this package whose attention takes an `attention_mask`.

    Returns:
        A `keras.Model` from a dict of `"token_ids"`, `"segment_ids"` and `"positions"`, integers of
        shape `(batch_size, length)`, to logits. Segment 0 is padding, which Keras losses leave out.
        Train with the targets that were packed with the tokens: a document's last token has no
        target in the row.

    Raises:
        InvalidInputError: `model` is not a language model of this package.
        NotSupportedError: Its layers can't keep documents apart, as in DeepSeek-V4.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config, make_packed_model
    >>> from keras_deepseek.training import pack_sequences
    >>> model = DeepSeekV3CausalLM(DeepSeekV3Config.from_preset("tiny"))
    >>> documents = [np.array([5, 6, 7]), np.array([8, 9])]
    >>> packed = pack_sequences({"token_ids": documents}, length=6)
    >>> tuple(make_packed_model(model)(packed).shape)
    (1, 6, 256)
    """
    _check_model(model)
    names = ("token_ids", "segment_ids", "positions")
    inputs: dict[str, Any] = {name: Input((None,), dtype="int32", name=name) for name in names}
    hidden_states = _call_backbone(model, inputs)
    logits = model.token_logits(hidden_states)
    if model.multi_token_prediction is not None:
        loss = MultiTokenLoss(model.multi_token_prediction, name="multi_token_loss")
        logits = loss(
            logits,
            hidden_states,
            inputs["token_ids"],
            mask=ops.not_equal(inputs["segment_ids"], 0),
            segment_ids=inputs["segment_ids"],
            positions=inputs["positions"],
        )
    packed = keras.Model(inputs, logits, name=f"packed_{model.name}")
    packed.dtype_policy = model.dtype_policy  # By which Keras scales a loss in float16.
    return packed


def _check_model(model: Any) -> None:
    if not isinstance(model, CausalLM):
        raise InvalidInputError(
            f"`model` must be a language model of keras_deepseek.models, received {model!r}."
        )
    if not all(isinstance(layer, DecoderBlock) for layer in model.backbone.transformer_layers):
        raise NotSupportedError(
            f"{type(model).__name__} compresses the tokens of a row, whatever their documents, so "
            "it can't be trained on packed rows. Put each document into a separate row."
        )


def _call_backbone(model: CausalLM, inputs: dict[str, Any]) -> Any:
    """Returns the hidden states of packed rows; tokens attend only within their document."""
    backbone, segments = model.backbone, inputs["segment_ids"]
    mask = ops.not_equal(segments, 0)
    attention_mask = ops.equal(ops.expand_dims(segments, 2), ops.expand_dims(segments, 1))
    x = backbone.token_embedding(inputs["token_ids"])
    for layer in backbone.transformer_layers:
        x = layer(
            x,
            mask=mask,
            positions=inputs["positions"],
            attention_mask=attention_mask,
            token_ids=inputs["token_ids"],
        )
    return backbone.final_norm(x)

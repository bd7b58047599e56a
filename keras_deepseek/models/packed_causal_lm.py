"""A language model for packed rows: several documents in each, none of which sees another.

It stands between `training.pack_sequences`, which makes such rows, and `fit`.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.layers import Input
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.decoder.multi_token_loss import MultiTokenLoss


def make_packed_model(model: CausalLM) -> keras.Model:
    """Returns a Functional model with the weights of `model` that is given packed rows.

    Choose it to train on documents of many lengths without padding. It has the layers of the model,
    so that what trains it trains the model, which is then called, saved and decoded with as ever.
    Attention is within a document, and positions count in it. The loss of modules that predict
    further tokens is added in training, as if each document were alone; that of balanced experts,
    `balance_loss`, is by row. DeepSeek-V4 makes entries of a row's tokens whichever document they
    are of, and is refused.

    Args:
        model: A language model of this package whose attention takes an `attention_mask`.

    Returns:
        A `keras.Model` from a dict of `"token_ids"`, `"segment_ids"` and `"positions"`, integers of
        shape `(batch_size, length)`, to logits. Where the segment is 0 there is padding, which
        losses of Keras leave out. Give it the targets that were packed beside the tokens: those
        of a document's last token are in no row.

    Raises:
        InvalidInputError: It is no language model of this package.
        NotSupportedError: Its layers don't keep documents apart: it is a DeepSeek-V4.

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
    packed.dtype_policy = model.dtype_policy  # Keras scales a loss in float16 by it.
    return packed


def _check_model(model: Any) -> None:
    if not isinstance(model, CausalLM):
        raise InvalidInputError(
            f"`model` must be a language model of keras_deepseek.models, received {model!r}."
        )
    if not all(isinstance(layer, DecoderBlock) for layer in model.backbone.transformer_layers):
        raise NotSupportedError(
            f"{type(model).__name__} makes entries of a row's tokens, whichever document they are "
            "of: give it each document in a row of its own."
        )


def _call_backbone(model: CausalLM, inputs: dict[str, Any]) -> Any:
    """Returns the hidden states of packed rows, of which each sees its own document alone."""
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

"""The body of a language model: from token ids to hidden states, whole or token by token."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import Input
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.layers.inner_layers import take_arguments
from keras_deepseek.layers.last_tokens import take_last
from keras_deepseek.models.config_model import ConfigModel, check_ids


class DecoderBackbone(ConfigModel):
    """What the backbones of all decoder families are: an embedding, blocks, and a last norm.

    A family makes these three, names its config class, and has a Functional model of them and
    decoding with a cache. A family with residual streams also gives what makes and ends them.

    Args:
        config: The family's config, a dataclass.
        token_embedding: `keras.layers.ReversibleEmbedding`.
        transformer_layers: sequence of `keras.Layer`, each called as a `DecoderBlock` is.
        final_norm: `keras.Layer`.
        expansion: `keras.Layer`, or `None`. From the embedded tokens to what the first block is
            given. Defaults to `None`: these as they are.
        collapse: `keras.Layer`, or `None`. From what the last block returned to what the last norm
            is given. Defaults to `None`: the same.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of `"token_ids"`, integers of shape `(batch_size, length)`, and
            `"padding_mask"` of the same shape, 0 where a token is padding.

    Returns:
        A tensor of shape `(batch_size, length, dim)`: the hidden states behind the last norm.

    Raises:
        InvalidInputError: Sequences are longer than the config's `max_length`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DecoderBackbone, DeepSeekV2Backbone, DeepSeekV2Config
    >>> backbone = DeepSeekV2Backbone(DeepSeekV2Config.from_preset("tiny"))
    >>> isinstance(backbone, DecoderBackbone), len(backbone.transformer_layers)
    (True, 2)
    >>> cache = backbone.make_cache(batch_size=1, max_length=8)
    >>> hidden_states, cache = backbone.call_with_cache(np.array([[3, 1, 4]]), cache, 0)
    >>> tuple(hidden_states.shape)
    (1, 3, 64)
    """

    def __init__(
        self,
        config: Any,
        token_embedding: keras.Layer,
        transformer_layers: Sequence[keras.Layer],
        final_norm: keras.Layer,
        *,
        expansion: keras.Layer | None = None,
        collapse: keras.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        for layer in (token_embedding, final_norm):
            layer.supports_masking = True  # Each token alone; Keras's own classes can't know.
        inputs = make_token_inputs()
        mask = ops.not_equal(inputs["padding_mask"], 0)
        x = token_embedding(inputs["token_ids"])
        x = x if expansion is None else expansion(x)
        for layer in transformer_layers:
            x = layer(x, mask=mask, token_ids=inputs["token_ids"])
        x = x if collapse is None else collapse(x)
        super().__init__(inputs, final_norm(x), **kwargs)
        self.config = config
        self.layers_policy = token_embedding.dtype_policy
        self.token_embedding = token_embedding
        self.transformer_layers = list(transformer_layers)
        self.final_norm = final_norm
        self.expansion = expansion
        self.collapse = collapse

    def make_cache(self, batch_size: int, max_length: int) -> list[Cache]:
        """Returns the empty caches of all blocks, for `call_with_cache`.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. Number of tokens that they have room for, padding included.

        Raises:
            InvalidInputError: A size is not a positive integer; of a batch, zero is one.
        """
        return [layer.make_cache(batch_size, max_length) for layer in self.transformer_layers]

    def call_with_cache(
        self,
        token_ids: Any,
        cache: Sequence[Cache],
        cache_index: Any,
        padding_mask: Any = None,
        positions: Any = None,
        num_hidden_states: int | None = None,
    ) -> tuple[Any, list[Cache]]:
        """Returns the hidden states of further tokens, and the caches with these written in.

        Args:
            token_ids: Integer tensor of shape `(batch_size, length)`.
            cache: list of dicts, as `make_cache` or an earlier call returned it.
            cache_index: integer or integer scalar tensor. The slot of the first token.
            padding_mask: Tensor of the shape of `token_ids`, 0 where a token is padding, or `None`
                for no padding. Defaults to `None`.
            positions: Integer tensor of the shape of `token_ids`, or `None` to count slots.
                Defaults to `None`.
            num_hidden_states: integer, or `None` for all. Of how many tokens, from the last back,
                hidden states are returned: the last layer then has no other to compute, where it
                can leave them out, beyond what it keeps in its cache. Defaults to `None`.

        Returns:
            A pair: a tensor of shape `(batch_size, length, dim)`, or of `num_hidden_states` tokens,
            and a list of dicts.

        Raises:
            InvalidInputError: The token ids are no integers, the caches are not those of this
                model, or full, or `num_hidden_states` is not positive.
        """
        check_ids(self.inputs, {"token_ids": token_ids})
        if len(cache) != len(self.transformer_layers):
            raise InvalidInputError(
                f"`cache` must have one entry for each of the {len(self.transformer_layers)} "
                f"layers, received {len(cache)}. Make it with the model's own `make_cache`."
            )
        mask = None if padding_mask is None else ops.not_equal(ops.cast(padding_mask, "int32"), 0)
        x = self.token_embedding(token_ids)
        x = x if self.expansion is None else self.expansion(x)
        written = []
        for layer, layer_cache in zip(self.transformer_layers, cache, strict=True):
            is_last = layer is self.transformer_layers[-1]
            given = take_arguments(layer, num_outputs=num_hidden_states if is_last else None)
            x, layer_cache = layer(  # noqa: PLW2901 - the cache that goes on
                x,
                mask=mask,
                positions=positions,
                cache=layer_cache,
                cache_index=cache_index,
                token_ids=token_ids,
                **given,
            )
            written.append(layer_cache)
        x = take_last(x, num_hidden_states)
        x = x if self.collapse is None else self.collapse(x)
        return self.final_norm(x), written


def make_token_inputs() -> dict[str, keras.KerasTensor]:
    """Returns the inputs of a language model: token ids, and which of them are real."""
    return {
        name: Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")
    }

"""The base class of language model backbones, which turn token ids into hidden states."""

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
    """A decoder from token ids to hidden states: an embedding, blocks, and a last norm.

    The backbones of all language model families derive from it. Choose it to make a backbone of
    your own blocks: it is a Functional model of them, and decodes with a cache. A model with
    residual streams also gives the layers that make the streams and merge them again.

    Args:
        config: The family's config, a dataclass.
        token_embedding: `keras.layers.ReversibleEmbedding`.
        transformer_layers: sequence of `keras.Layer`. Each is called as a `DecoderBlock` is.
        final_norm: `keras.Layer`. The norm after the last block.
        expansion: `keras.Layer` or `None`. From the embedded tokens to the input of the first
            block; `None` is the identity. Defaults to `None`.
        collapse: `keras.Layer` or `None`. From the output of the last block to the input of the
            last norm; `None` is the identity. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

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
            layer.supports_masking = True  # Keras does not know that they treat each token alone.
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

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the hidden states after the last norm.

        Args:
            inputs: dict of `"token_ids"`, integers of shape `(batch_size, length)`, and
                `"padding_mask"` of the same shape, 0 for padding.
            training: boolean or `None`. Whether the model trains. `None` takes the value of the
                surrounding call. Defaults to `None`.
            mask: As in `keras.Model`; `"padding_mask"` says what is padding. Defaults to `None`.

        Returns:
            A tensor of shape `(batch_size, length, hidden_dim)`.

        Raises:
            InvalidInputError: Token ids are floats, or sequences are longer than the config's
                `max_length`.
        """
        return super().call(inputs, training=training, mask=mask)

    def make_cache(self, batch_size: int, max_length: int) -> list[Cache]:
        """Returns the empty caches of all blocks, for `call_with_cache`.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. Number of tokens that fit into the cache, padding included.

        Raises:
            InvalidInputError: `max_length` is not a positive integer, or `batch_size` is negative.
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
        """Returns the hidden states of further tokens, and the updated caches.

        Args:
            token_ids: Integer tensor of shape `(batch_size, length)`.
            cache: list of dicts, from `make_cache` or an earlier call.
            cache_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The slot of
                the first token, of all sequences or of each. With one each, sequences may begin,
                wait and end by themselves: their slots are their positions.
            padding_mask: Tensor of the shape of `token_ids`, 0 for padding, or `None` for no
                padding. A sequence that waits has only padding. Defaults to `None`.
            positions: Integer tensor of the shape of `token_ids`, or `None` to count slots.
                Defaults to `None`.
            num_hidden_states: integer or `None`. Number of last tokens to return hidden states for;
                `None` is all. The last layer skips the other tokens where it can, except for what
                it caches. Defaults to `None`.

        Returns:
            A pair: a tensor of shape `(batch_size, length, dim)`, or of `num_hidden_states` tokens,
                and a list of dicts.

        Raises:
            InvalidInputError: The token ids are not integers, the caches are full or belong to
                another model, or `num_hidden_states` is not positive.
        """
        check_ids(self.inputs, {"token_ids": token_ids})
        if len(cache) != len(self.transformer_layers):
            raise InvalidInputError(
                f"`cache` must have one entry for each of the {len(self.transformer_layers)} "
                f"layers, received {len(cache)}. Make it with the `make_cache` of this model."
            )
        mask = None if padding_mask is None else ops.not_equal(ops.cast(padding_mask, "int32"), 0)
        x = self.token_embedding(token_ids)
        x = x if self.expansion is None else self.expansion(x)
        written = []
        for layer, layer_cache in zip(self.transformer_layers, cache, strict=True):
            is_last = layer is self.transformer_layers[-1]
            arguments = take_arguments(layer, num_outputs=num_hidden_states if is_last else None)
            x, layer_cache = layer(  # noqa: PLW2901 - the updated cache
                x,
                mask=mask,
                positions=positions,
                cache=layer_cache,
                cache_index=cache_index,
                token_ids=token_ids,
                **arguments,
            )
            written.append(layer_cache)
        x = take_last(x, num_hidden_states)
        x = x if self.collapse is None else self.collapse(x)
        return self.final_norm(x), written


def make_token_inputs() -> dict[str, keras.KerasTensor]:
    """Makes a language model's symbolic inputs: token ids and padding mask."""
    return {
        name: Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")
    }

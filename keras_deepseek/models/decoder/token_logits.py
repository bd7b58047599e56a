"""The output layer of a language model, which computes logits with the token embedding."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import call_reversed, promote_dtypes
from keras_deepseek.layers.inner_layers import revive_layer, serialize_layer
from keras_deepseek.layers.input_check import Shape, read_last_dim


@keras.saving.register_keras_serializable("keras_deepseek")
class TokenLogits(keras.Layer):
    """A layer that scores all tokens of a vocabulary: `token_embedding(x, reverse=True)`.

    Choose it if a head must be a separate layer, as in `MultiTokenPrediction`. It has no weights of
    its own. It uses the transposed embeddings if the embedding ties its weights, and its
    `reverse_embeddings` otherwise. Logits are float32 or better under any policy: half precision
    makes probabilities and losses inaccurate.

    Args:
        token_embedding: `keras.layers.ReversibleEmbedding`, or its serialized config. The embedding
            of the model's inputs.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.

    Returns:
        A tensor of shape `(batch_size, ..., vocabulary_size)`.

    Raises:
        InvalidInputError: `token_embedding` is not a `ReversibleEmbedding`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_deepseek.models import TokenLogits
    >>> embedding = keras.layers.ReversibleEmbedding(100, 12)
    >>> tuple(TokenLogits(embedding)(embedding(np.ones((2, 5), "int32"))).shape)
    (2, 5, 100)
    """

    def __init__(self, token_embedding: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.token_embedding = revive_layer("token_embedding", token_embedding)
        if not isinstance(self.token_embedding, keras.layers.ReversibleEmbedding):
            raise InvalidInputError(
                f"`token_embedding` must be a `ReversibleEmbedding`, received {token_embedding!r}."
            )
        self.token_embedding.supports_masking = True  # It treats each token alone.
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        read_last_dim(self, input_shape)
        if not self.token_embedding.built:
            self.token_embedding.build()

    def call(self, inputs: Any) -> Any:
        logits = call_reversed(self.token_embedding, inputs)
        return ops.cast(logits, promote_dtypes(logits.dtype, "float32"))

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(
            (*inputs.shape[:-1], self.token_embedding.input_dim),
            promote_dtypes(self.compute_dtype, "float32"),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "token_embedding": serialize_layer(self.token_embedding),
        }

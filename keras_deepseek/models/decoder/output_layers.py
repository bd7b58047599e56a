"""The layers behind a backbone: token logits, and the loss of multi-token prediction."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import call_reversed, promote_dtypes
from keras_deepseek.layers.heads.multi_token_prediction import MultiTokenPrediction
from keras_deepseek.layers.inner_layers import revive_layer, serialize_layer
from keras_deepseek.layers.input_check import Shape, read_last_dim
from keras_deepseek.layers.quantized_layers import call_reversed_quantized


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
        is_quantized = self.token_embedding.quantization_mode is not None
        compute = call_reversed_quantized if is_quantized else call_reversed
        logits = compute(self.token_embedding, inputs)
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


@keras.saving.register_keras_serializable("keras_deepseek")
class MultiTokenLoss(keras.Layer):
    """A layer that returns its logits and adds the loss of `MultiTokenPrediction` in training.

    Choose it instead of `MultiTokenPrediction` if a model should return only its own logits. The
    modules are not run at inference.

    Args:
        prediction: `MultiTokenPrediction`, or its serialized config.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Tensor of logits.
        hidden_states: Floating-point tensor of shape `(batch_size, length, dim)`.
        token_ids: Integer tensor of shape `(batch_size, length)`.
        mask: Boolean tensor of shape `(batch_size, length)`, false for padding, or `None`.
        training: boolean. Whether to add the loss.
        segment_ids: Integer tensor of shape `(batch_size, length)`, or `None`. In packed rows, the
            document of each token.
        positions: Integer tensor of shape `(batch_size, length)`, or `None`. In packed rows, the
            positions within the document.

    Returns:
        `inputs`.

    Raises:
        InvalidInputError: `prediction` is of another class.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_deepseek.layers import MultiTokenPrediction, SwiGLU
    >>> from keras_deepseek.models import MultiTokenLoss
    >>> embedding, head = keras.layers.Embedding(100, 12), keras.layers.Dense(100)
    >>> layer = MultiTokenLoss(MultiTokenPrediction(SwiGLU(16), embedding, head))
    >>> tokens = np.ones((2, 5), "int32")
    >>> hidden = embedding(tokens)
    >>> logits = layer(head(hidden), hidden, tokens, training=True)
    >>> tuple(logits.shape), len(layer.losses)
    ((2, 5, 100), 1)
    """

    def __init__(self, prediction: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prediction = revive_layer("prediction", prediction)
        if not isinstance(self.prediction, MultiTokenPrediction):
            raise InvalidInputError(
                f"`prediction` must be a `MultiTokenPrediction`, received {prediction!r}."
            )
        self.supports_masking = True

    def build(self, inputs_shape: Shape, hidden_states_shape: Shape) -> None:
        if not self.prediction.built:
            self.prediction.build(hidden_states_shape)

    def call(
        self,
        inputs: Any,
        hidden_states: Any,
        token_ids: Any,
        mask: Any = None,
        training: bool | None = None,
        segment_ids: Any = None,
        positions: Any = None,
    ) -> Any:
        if training and self.prediction.loss_weight:
            self.prediction(
                hidden_states,
                token_ids,
                mask=mask,
                training=True,
                segment_ids=segment_ids,
                positions=positions,
            )
        return inputs

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "prediction": serialize_layer(self.prediction)}

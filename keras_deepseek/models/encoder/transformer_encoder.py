"""The layers of Transformer encoders, whose self-attention sees the whole sequence."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape, read_dim


@keras.saving.register_keras_serializable("keras_deepseek")
class PositionEmbedding(FloatingInputLayer):
    """A layer that adds a learned vector for its position to each token (BTD).

    Positions count from the first token, or with `counts_from_end` from the last one. In the latter
    case sequences that are padded on the left have the same positions at their end, whatever their
    length.
    """

    def __init__(
        self,
        max_length: int,
        *,
        counts_from_end: bool = False,
        embeddings_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_length = check_integer("max_length", max_length)
        self.counts_from_end = check_boolean("counts_from_end", counts_from_end)
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_length, read_dim(self, input_shape)),
            initializer=self.embeddings_initializer,
        )

    def call(self, inputs: Any) -> Any:
        self._check_length(inputs)
        table = ops.cast(self.embeddings, inputs.dtype)[: ops.shape(inputs)[1], :]
        return inputs + (ops.flip(table, axis=0) if self.counts_from_end else table)

    def compute_output_spec(self, inputs: Any) -> Any:
        self._check_length(inputs)
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def _check_length(self, inputs: Any) -> None:
        length = inputs.shape[1]
        if isinstance(length, int) and length > self.max_length:
            raise InvalidInputError(
                f"{self.name!r} has {self.max_length} positions, and received sequences of "
                f"{length} tokens. Cut them, or make a model with a larger `max_length`."
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "counts_from_end": self.counts_from_end,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
        }


@keras.saving.register_keras_serializable("keras_deepseek")
def gelu_approximate(x: Any) -> Any:
    """Returns the `tanh` approximation of GELU."""
    return keras.activations.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": keras.activations.gelu,
    "gelu_approximate": gelu_approximate,
    "relu": keras.activations.relu,
    "silu": keras.activations.silu,
    "tanh": keras.activations.tanh,
}


def read_activation(name: str) -> Callable[[Any], Any]:
    """Returns the activation function for a name in a config, one of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise InvalidInputError(unknown_name_message("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]


@keras.saving.register_keras_serializable("keras_deepseek")
class TransformerEncoderBlock(FloatingInputLayer):
    """A Transformer block with its norms after or before attention and feed-forward network.

    ```
    x = norm(x + attention(x)),  x = norm(x + feed_forward(x))        as in BERT
    x = x + attention(norm(x)),  x = x + feed_forward(norm(x))        with `normalize_first`
    ```

    `num_heads` divides the `dim` of the inputs `(batch_size, length, dim)`. `dropout` is the rate
    of the outputs of both parts. `epsilon` is added to the variance in the norms. `attention_mask`
    is `(batch_size, length, length)`, or `(batch_size, 1, length)` for all rows: true if the token
    of a row attends to that of a column.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        epsilon: float = 1e-12,
        normalize_first: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.intermediate_dim = check_integer("intermediate_dim", intermediate_dim)
        self.activation = activation
        read_activation(activation)
        self.dropout = check_number("dropout", dropout, minimum=0, below=1)
        self.attention_dropout = check_number(
            "attention_dropout", attention_dropout, minimum=0, below=1
        )
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.normalize_first = check_boolean("normalize_first", normalize_first)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        if dim % self.num_heads:
            raise InvalidInputError(
                f"{self.name!r} has {self.num_heads} heads, which must divide the last axis of its "
                f"inputs; received the shape {tuple(input_shape)}."
            )
        tokens = (*input_shape[:-1], dim)
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            dim // self.num_heads,
            dropout=self.attention_dropout,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name="attention",
        )
        self.attention.build(tokens, tokens)
        self.attention_norm = self._make_norm("attention_norm", tokens)
        self.attention_drop = keras.layers.Dropout(
            self.dropout, dtype=self.dtype_policy, name="attention_drop"
        )
        self.intermediate_dense = self._make_dense(
            "intermediate_dense", self.intermediate_dim, tokens, read_activation(self.activation)
        )
        self.output_dense = self._make_dense(
            "output_dense", dim, (*tokens[:-1], self.intermediate_dim)
        )
        self.feed_forward_norm = self._make_norm("feed_forward_norm", tokens)
        self.feed_forward_drop = keras.layers.Dropout(
            self.dropout, dtype=self.dtype_policy, name="feed_forward_drop"
        )

    def _make_norm(self, name: str, shape: Shape) -> keras.Layer:
        norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name=name
        )
        norm.build(shape)
        return norm

    def _make_dense(
        self, name: str, units: int, shape: Shape, activation: Any = None
    ) -> keras.Layer:
        dense = keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(shape)
        return dense

    def call(self, inputs: Any, attention_mask: Any = None, training: bool | None = None) -> Any:
        if attention_mask is not None:
            attention_mask = ops.cast(attention_mask, "bool")
        if self.normalize_first:
            attended = self._attend(self.attention_norm(inputs), attention_mask, training)
            hidden = inputs + attended
            return hidden + self._feed_forward(self.feed_forward_norm(hidden), training)
        hidden = self.attention_norm(inputs + self._attend(inputs, attention_mask, training))
        return self.feed_forward_norm(hidden + self._feed_forward(hidden, training))

    def _attend(self, inputs: Any, attention_mask: Any, training: bool | None) -> Any:
        attended = self.attention(inputs, inputs, attention_mask=attention_mask, training=training)
        return self.attention_drop(attended, training=training)

    def _feed_forward(self, inputs: Any, training: bool | None) -> Any:
        outputs = self.output_dense(self.intermediate_dense(inputs))
        return self.feed_forward_drop(outputs, training=training)

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "epsilon": self.epsilon,
            "normalize_first": self.normalize_first,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }

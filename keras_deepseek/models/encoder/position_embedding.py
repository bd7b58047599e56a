"""A layer that adds a learned vector for each position."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
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

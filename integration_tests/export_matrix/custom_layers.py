"""Layers and models that a user of Keras might write, for the export matrix."""

from typing import Any

import keras
from keras import ops

from keras_deepseek import layers


@keras.saving.register_keras_serializable("export_matrix")
class ScaledSwish(keras.layers.Layer):
    """A layer with a weight of its own."""

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="scale")

    def call(self, inputs: Any) -> Any:
        return inputs * ops.sigmoid(inputs * self.scale)


@keras.saving.register_keras_serializable("export_matrix")
class DecayingSum(keras.layers.Layer):
    """A recurrence by `ops.scan`, over a known number of steps."""

    def call(self, inputs: Any) -> Any:
        def step(carry: Any, value: Any) -> tuple[Any, Any]:
            carry = 0.5 * carry + ops.tanh(value)
            return carry, carry

        _, sums = ops.scan(step, ops.zeros_like(inputs[:, 0]), ops.transpose(inputs, (1, 0, 2)))
        return ops.transpose(sums, (1, 0, 2))


@keras.saving.register_keras_serializable("export_matrix")
class SignedBranch(keras.layers.Layer):
    """One computation or another, by what the whole batch holds."""

    def call(self, inputs: Any) -> Any:
        return ops.cond(
            ops.sum(inputs) > 0, lambda: ops.square(inputs) + 1.0, lambda: ops.tanh(inputs) - 2.0
        )


@keras.saving.register_keras_serializable("export_matrix")
class HalvedUntilSmall(keras.layers.Layer):
    """As many steps as the data need: rows are halved until the largest value is below one."""

    def call(self, inputs: Any) -> Any:
        def goes_on(values: Any, steps: Any) -> Any:
            return ops.max(ops.abs(values)) > 1.0

        def halve(values: Any, steps: Any) -> Any:
            return values * 0.5, steps + 1.0

        values, steps = ops.while_loop(goes_on, halve, (inputs * 4.0, ops.zeros_like(inputs)))
        return values + steps


@keras.saving.register_keras_serializable("export_matrix")
class SortedFeatures(keras.layers.Layer):
    """Sorts, gathers, and sums up: operators that move data about."""

    def call(self, inputs: Any) -> Any:
        indices = ops.argsort(inputs, axis=-1)
        ordered = ops.take_along_axis(inputs, indices, axis=-1)
        values, top = ops.top_k(inputs, 3)
        counts = ops.cast(ops.sum(ops.one_hot(top, inputs.shape[-1]), axis=1), inputs.dtype)
        return ops.concatenate([ops.cumsum(ordered, axis=-1), values, counts], axis=-1)


@keras.saving.register_keras_serializable("export_matrix")
class LatentDecodeStep(keras.layers.Layer):
    """Multi-head latent attention of new tokens upon a cache, which goes in and comes out."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadLatentAttention(
            4,
            nope_head_dim=8,
            rope_head_dim=4,
            value_head_dim=8,
            key_value_lora_rank=16,
            rotary=layers.RotaryEmbedding(use_interleaved_pairs=True),
            use_causal_mask=True,
        )

    def build(self, tokens_shape: Any, *_: Any) -> None:
        self.attention.build(tokens_shape)

    def call(self, tokens: Any, latent: Any, rotary_key: Any, filled: Any, index: Any) -> Any:
        cache = {"latent": latent, "rotary_key": rotary_key, "mask": filled}
        outputs, cache = self.attention(tokens, cache=cache, cache_index=ops.max(index))
        return outputs, cache["latent"], cache["rotary_key"], cache["mask"]


@keras.saving.register_keras_serializable("export_matrix")
class IndexerScores(keras.layers.Layer):
    """How much each token wants each other, by the indexer of DeepSeek-V3.2."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indexer = layers.LightningIndexer(
            2, head_dim=8, rotary=layers.RotaryEmbedding(rotary_dim=4)
        )

    def build(self, input_shape: Any) -> None:
        self.indexer.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.indexer.score_keys(*self.indexer(inputs))


@keras.saving.register_keras_serializable("export_matrix")
class Residual(keras.Model):
    """A subclassed model."""

    def __init__(self, units: int = 12, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, activation="gelu")
        self.norm = keras.layers.LayerNormalization()
        self.out = keras.layers.Dense(units)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        hidden = self.norm(self.hidden(inputs))
        return {"hidden": hidden, "sum": hidden + self.out(inputs)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}

"""A base class for BERT models whose segment ids may be left out."""

from typing import Any

from keras_deepseek.models.config_model import ConfigModel, check_ids


class SegmentedModel(ConfigModel):
    """A `ConfigModel` whose input `"segment_ids"` may be left out if all tokens are in segment 0.

    Both `__call__` and `call` fill it in: Keras checks the names of inputs in `__call__`, and on
    JAX it trains with `call` alone.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self._with_segments(inputs), *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(self._with_segments(inputs), training=training, mask=mask)

    def _with_segments(self, inputs: Any) -> Any:
        if not isinstance(inputs, dict) or "segment_ids" in inputs or "token_ids" not in inputs:
            return inputs
        check_ids(self.inputs, inputs)
        # The product has the type of the tokens: Keras does not take both arrays and tensors.
        return {**inputs, "segment_ids": 0 * inputs["token_ids"]}

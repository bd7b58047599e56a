"""Models of BERT's inputs: what is of one segment need not say so."""

from typing import Any

from keras_deepseek.models.config_model import ConfigModel, check_ids


class SegmentedModel(ConfigModel):
    """A `ConfigModel` whose input `"segment_ids"` may be left out: all tokens are of the first.

    Keras checks the names of the inputs in `__call__`, and trains on JAX by `call` alone.
    """

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(self._with_segments(inputs), *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(self._with_segments(inputs), training=training, mask=mask)

    def _with_segments(self, inputs: Any) -> Any:
        if not isinstance(inputs, dict) or "segment_ids" in inputs or "token_ids" not in inputs:
            return inputs
        check_ids(self.inputs, inputs)
        # Of the tokens' own kind: Keras takes no arrays and tensors in one call.
        return {**inputs, "segment_ids": 0 * inputs["token_ids"]}

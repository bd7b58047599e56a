"""What the tasks of all DeepSeek families have in common: made of a config, and their tensors.

A family beside them names its classes; DeepSeek-V4, whose layers are its own, also has its own
modules that predict further tokens and its own checkpoint map.
"""

from collections.abc import Collection
from typing import Any, ClassVar

from keras_deepseek.layers import MultiTokenPrediction
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.decoder.deepseek_checkpoint_map import (
    FLOAT32_TENSORS,
    deepseek_entries,
    unread_tensors,
)
from keras_deepseek.models.decoder.deepseek_layers import make_multi_token_prediction


class DeepSeekCausalLM(CausalLM):
    """A `CausalLM` that is made of a config.

    A family names its `architectures`, its `config_class` and its `backbone_class`.

    Args:
        config: The family's config.
        dtype: string, `keras.DTypePolicy` or `None`. The policy of all layers; `None` takes the
            global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.
    """

    backbone_class: ClassVar[type[Any]]
    """The class of the backbone, which is made of the same arguments."""

    float32_tensors: ClassVar[tuple[str, ...]] = FLOAT32_TENSORS

    def __init__(self, config: Any, *, dtype: Any = None, **kwargs: Any) -> None:
        backbone = self.backbone_class(config, dtype=dtype, name="backbone")
        prediction = self.make_prediction(backbone) if config.num_prediction_layers else None
        super().__init__(backbone, multi_token_prediction=prediction, **kwargs)

    @staticmethod
    def make_prediction(backbone: Any) -> MultiTokenPrediction:
        """Returns the modules that predict further tokens.

        Args:
            backbone: The family's backbone, whose config has some.
        """
        return make_multi_token_prediction(backbone)

    @property
    def ignored_tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Patterns of tensors that a checkpoint may hold beside those of the model."""
        return unread_tensors(self.config)

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
        return deepseek_entries(self, tensors)

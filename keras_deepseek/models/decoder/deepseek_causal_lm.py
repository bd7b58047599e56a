"""The base class of the causal language models of all DeepSeek families.

DeepSeek-V4 overrides more of it: it has its own layers that predict further tokens and its own
checkpoint map.
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
    """A `CausalLM` of a DeepSeek family, built from its config.

    A family sets its `architectures`, its `config_class` and its `backbone_class`.
    """

    backbone_class: ClassVar[type[Any]]
    """The class of the backbone, which takes the same arguments."""

    float32_tensors: ClassVar[tuple[str, ...]] = FLOAT32_TENSORS

    def __init__(self, config: Any, *, dtype: Any = None, **kwargs: Any) -> None:
        backbone = self.backbone_class(config, dtype=dtype, name="backbone")
        prediction = self.make_prediction(backbone) if config.num_prediction_layers else None
        super().__init__(backbone, multi_token_prediction=prediction, **kwargs)

    @staticmethod
    def make_prediction(backbone: Any) -> MultiTokenPrediction:
        """Returns the modules that predict further tokens.

        Args:
            backbone: The family's backbone. Its config has `num_prediction_layers`.
        """
        return make_multi_token_prediction(backbone)

    @property
    def ignored_tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Patterns of the names of tensors in a checkpoint that are not read."""
        return unread_tensors(self.config)

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
        return deepseek_entries(self, tensors)

"""The config class of DeepSeek-V3 models: their sizes and options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.checks import check_boolean
from keras_deepseek.layers.inherited_docs import complete_docstring
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.deepseek_v3.family import DEEPSEEK_V3
from keras_deepseek.models.family import Family


@complete_docstring(DeepSeekConfig)
@dataclass(frozen=True, kw_only=True)
class DeepSeekV3Config(DeepSeekConfig):
    """The sizes of a `DeepSeekV3CausalLM`: the fields of `DeepSeekConfig`, and those below.

    `from_preset` has `"tiny"` and `"deepseek_v3"`.

    Args:
        use_interleaved_pairs: boolean. Whether a rotary pair consists of neighbours, as in
            DeepSeek's own checkpoints, instead of entries that are half of `rope_head_dim` apart.
            Defaults to `True`.

    Example:

    >>> from keras_deepseek.models import DeepSeekV3Config
    >>> config = DeepSeekV3Config.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    use_interleaved_pairs: bool = True

    topk_methods: ClassVar[tuple[str, ...]] = ("noaux_tc",)
    family: ClassVar[Family] = DEEPSEEK_V3
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DEEPSEEK_V3.presets
    own_keys: ClassVar[Mapping[str, str]] = {"rope_interleave": "use_interleaved_pairs"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_boolean("use_interleaved_pairs", self.use_interleaved_pairs)

    @classmethod
    def optional_keys(cls) -> set[str]:
        return {"rope_interleave"}  # DeepSeek's own files lack it, and have pairs of neighbours.

    def attention_arguments(self) -> dict[str, Any]:
        return {
            **super().attention_arguments(),
            "use_interleaved_pairs": self.use_interleaved_pairs,
        }

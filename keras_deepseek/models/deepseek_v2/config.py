"""The config class of DeepSeek-V2 models: their sizes and options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.layers.inherited_docs import complete_docstring
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.deepseek_v2.family import DEEPSEEK_V2
from keras_deepseek.models.family import Family


@complete_docstring(DeepSeekConfig)
@dataclass(frozen=True, kw_only=True)
class DeepSeekV2Config(DeepSeekConfig):
    """The sizes of a `DeepSeekV2CausalLM`: the fields of `DeepSeekConfig`, and those below.

    If weights are normalized, they are not multiplied with `routed_scale`, as in DeepSeek's own
    code. Transformers ignores `norm_topk_prob`. No published checkpoint sets it.

    `from_preset` has `"tiny"`, `"deepseek_v2_lite"` and `"deepseek_v2"`.

    Args:
        scoring: string. The `scoring` of `ExpertRouter`. Defaults to `"softmax"`.
        normalize_weights: boolean. Whether to divide the weights of a token's experts by their sum.
            Defaults to `False`.

    Example:

    >>> from keras_deepseek.models import DeepSeekV2Config
    >>> config = DeepSeekV2Config.from_preset("tiny", num_layers=4)
    >>> config.num_layers, config.hidden_dim
    (4, 64)
    """

    scoring: str = "softmax"
    normalize_weights: bool = False

    topk_methods: ClassVar[tuple[str, ...]] = ("greedy", "group_limited_greedy")
    family: ClassVar[Family] = DEEPSEEK_V2
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = DEEPSEEK_V2.presets

    def router_arguments(self) -> dict[str, Any]:
        arguments = {
            **super().router_arguments(),
            "group_scoring": "max",
            "use_expert_bias": False,
        }
        if self.normalize_weights:
            arguments["routed_scale"] = 1.0
        return arguments

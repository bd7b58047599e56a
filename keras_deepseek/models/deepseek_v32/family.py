"""The declaration of the DeepSeek-V3.2 family, and its presets by name."""

from collections.abc import Mapping
from typing import Any

from keras_deepseek.models.deepseek_v3.family import DEEPSEEK_V3
from keras_deepseek.models.family import Family

_PRESETS: dict[str, Mapping[str, Any]] = {
    "tiny": {
        **DEEPSEEK_V3.presets["tiny"],
        "index_top_k": 16,
        "index_num_heads": 4,
        "index_head_dim": 16,
    },
    "deepseek_v32": DEEPSEEK_V3.presets["deepseek_v3"],
}

DEEPSEEK_V32 = Family(
    model_type="deepseek_v32",
    architectures=("DeepseekV32ForCausalLM",),
    presets=_PRESETS,
    peft_adapts_experts=True,
)

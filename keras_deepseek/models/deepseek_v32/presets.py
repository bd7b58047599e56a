"""Sizes that have a name, as those of DeepSeek-V3. Data alone: the config reads it."""

from typing import Any

from keras_deepseek.models.deepseek_v3.presets import PRESETS as V3_PRESETS

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        **V3_PRESETS["tiny"],
        "index_top_k": 16,
        "index_num_heads": 4,
        "index_head_dim": 16,
    },
    "deepseek_v32": V3_PRESETS["deepseek_v3"],
}

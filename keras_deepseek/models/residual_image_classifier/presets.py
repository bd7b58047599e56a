"""Sizes that have a name. Data only: `ResidualImageClassifierConfig.from_preset` reads it."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"filters_per_stage": (16, 32), "blocks_per_stage": (1, 1)},
    "small": {"filters_per_stage": (32, 64, 128), "blocks_per_stage": (2, 2, 2)},
    "resnet_18": {"filters_per_stage": (64, 128, 256, 512), "blocks_per_stage": (2, 2, 2, 2)},
}

"""The declaration of a model family: its names in configs, presets, tasks and LoRA files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """The names of one model family's config, presets, tasks and LoRA modules.

    Each family declares one in its `config.py` or `family.py`, and `families.py` lists them.

    Args:
        architectures: The names of the task in a `config.json`. The first one is written.
        presets: The arguments of each named size, except for those that the user has to give.
        model_type: The `model_type` in a `config.json`, or `None` for a family that `transformers`
            does not have.
        peft_adapts_experts: True if `peft` (0.21, on transformers 5) treats every module called
            `gate_proj`, `up_proj` or `down_proj` as stacked experts, in dense layers too.
    """

    architectures: tuple[str, ...]
    presets: Mapping[str, Mapping[str, Any]]
    model_type: str | None = None
    peft_adapts_experts: bool = False

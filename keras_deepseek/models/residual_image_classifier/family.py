"""The declaration of the residual image classifier family, and its presets by name."""

from typing import Any

from keras_deepseek.models.family import Family

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"filters_per_stage": (16, 32), "blocks_per_stage": (1, 1)},
    "small": {"filters_per_stage": (32, 64, 128), "blocks_per_stage": (2, 2, 2)},
    "resnet_18": {"filters_per_stage": (64, 128, 256, 512), "blocks_per_stage": (2, 2, 2, 2)},
}

RESIDUAL_IMAGE_CLASSIFIER = Family(
    architectures=("ResidualImageClassifier",),
    presets=_PRESETS,
)

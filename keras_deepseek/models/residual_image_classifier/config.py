"""The config class of residual image classifiers, and the presets of the family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.family import Family
from keras_deepseek.models.preset_config import PresetConfig

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"filters_per_stage": (16, 32), "blocks_per_stage": (1, 1)},
    "small": {"filters_per_stage": (32, 64, 128), "blocks_per_stage": (2, 2, 2)},
    "resnet_18": {"filters_per_stage": (64, 128, 256, 512), "blocks_per_stage": (2, 2, 2, 2)},
}

RESIDUAL_IMAGE_CLASSIFIER = Family(
    architectures=("ResidualImageClassifier",),
    presets=_PRESETS,
)


SMALLEST_IMAGE = 8


@dataclass(frozen=True)
class ResidualImageClassifierConfig(PresetConfig):
    """The sizes of a `ResidualImageClassifier`.

    `from_preset` has `"tiny"`, `"small"` and `"resnet_18"`.

    Args:
        num_classes: integer. Number of classes.
        filters_per_stage: tuple of integers. Number of channels of each stage. Each stage except
            the first halves height and width. Defaults to `(16, 32)`.
        blocks_per_stage: tuple of integers. Number of residual blocks of each stage. Defaults to
            `(1, 1)`.
        image_shape: tuple of integers or `None`. Height, width and channels; `None` for any height
            or width. Defaults to `(None, None, 3)`.
        dropout: float. Dropout rate of the pooled features. Defaults to `0.0`.
        activation: string or `None`. `"softmax"` for probabilities, `None` for logits. Defaults to
            `"softmax"`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import ResidualImageClassifierConfig
    >>> config = ResidualImageClassifierConfig.from_preset("tiny", num_classes=10)
    >>> config.filters_per_stage
    (16, 32)
    """

    num_classes: int
    filters_per_stage: Sequence[int] = (16, 32)
    blocks_per_stage: Sequence[int] = (1, 1)
    image_shape: Sequence[int | None] = (None, None, 3)
    dropout: float = 0.0
    activation: str | None = "softmax"

    family: ClassVar[Family] = RESIDUAL_IMAGE_CLASSIFIER
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = RESIDUAL_IMAGE_CLASSIFIER.presets

    def __post_init__(self) -> None:
        for name in ("filters_per_stage", "blocks_per_stage", "image_shape"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON returns lists.
        num_stages, blocks = len(self.filters_per_stage), self.blocks_per_stage
        self._check("num_classes", self.num_classes > 1, "at least 2")
        self._check(
            "filters_per_stage",
            num_stages > 0 and min(self.filters_per_stage) > 0,
            "one or more positive integers",
        )
        self._check(
            "blocks_per_stage",
            len(blocks) == num_stages and min(blocks) > 0,
            f"{num_stages} positive integers, one for each of `filters_per_stage`",
        )
        self._check(
            "image_shape",
            _is_image_shape(self.image_shape),
            f"(height, width, channels) with sizes of at least {SMALLEST_IMAGE}, or None for any",
        )
        self._check("dropout", 0 <= self.dropout < 1, "at least 0 and less than 1")
        self._check("activation", self.activation in {None, "softmax"}, "'softmax' or None")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InvalidInputError(
                f"`{name}` must be {expected}, received {getattr(self, name)!r}."
            )


def _is_image_shape(shape: Sequence[int | None]) -> bool:
    *sizes, channels = shape or (None,)
    return (
        len(sizes) == len(("height", "width"))
        and all(size is None or size >= SMALLEST_IMAGE for size in sizes)
        and channels is not None
        and channels > 0
    )

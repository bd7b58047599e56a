"""The config class of sequential recommenders, and the presets of the family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.encoder.transformer_encoder import read_activation
from keras_deepseek.models.family import Family
from keras_deepseek.models.preset_config import PresetConfig

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_dim": 32, "num_layers": 1, "num_heads": 1, "intermediate_dim": 64},
    "small": {"hidden_dim": 64, "num_layers": 2, "num_heads": 2, "intermediate_dim": 256},
    "base": {
        "hidden_dim": 128,
        "num_layers": 2,
        "num_heads": 4,
        "intermediate_dim": 512,
        "max_length": 200,
    },
}

SEQUENTIAL_RECOMMENDER = Family(
    architectures=("SequentialRecommender",),
    presets=_PRESETS,
)


@dataclass(frozen=True)
class SequentialRecommenderConfig(PresetConfig):
    """The sizes of a `SequentialRecommender`.

    `from_preset` has `"tiny"`, `"small"` and `"base"`.

    Args:
        num_items: integer. Number of items. Their ids are 1 to `num_items`, and 0 is padding.
        max_length: integer. Number of last items of a history that are read. Defaults to `50`.
        hidden_dim: integer. Size of an item's embedding and of the hidden states; `num_heads`
            divides it. Defaults to `64`.
        num_layers: integer. Number of blocks. Defaults to `2`.
        num_heads: integer. Number of attention heads. Defaults to `2`.
        intermediate_dim: integer. Hidden size of the feed-forward networks. Defaults to `256`.
        activation: string. `"gelu"`, `"gelu_approximate"`, `"relu"`, `"silu"` or `"tanh"`. Defaults
            to `"gelu"`.
        dropout: float. Dropout rate of hidden states. Defaults to `0.1`.
        epsilon: float. Added to the variance in the norms. Defaults to `1e-6`.
        initializer_range: float. Standard deviation of the initial weights. Defaults to `0.02`.

    Raises:
        InvalidInputError: A value is out of its range. The message names it.

    Example:

    >>> from keras_deepseek.models import SequentialRecommenderConfig
    >>> SequentialRecommenderConfig.from_preset("small", num_items=3000).hidden_dim
    64
    """

    num_items: int
    max_length: int = 50
    hidden_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    intermediate_dim: int = 256
    activation: str = "gelu"
    dropout: float = 0.1
    epsilon: float = 1e-6
    initializer_range: float = 0.02

    family: ClassVar[Family] = SEQUENTIAL_RECOMMENDER
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = SEQUENTIAL_RECOMMENDER.presets

    def __post_init__(self) -> None:
        for name in (
            "num_items",
            "max_length",
            "hidden_dim",
            "num_layers",
            "num_heads",
            "intermediate_dim",
        ):
            check_integer(name, getattr(self, name))
        check_number("dropout", self.dropout, minimum=0, below=1)
        check_number("epsilon", self.epsilon, above=0)
        check_number("initializer_range", self.initializer_range, above=0)
        read_activation(self.activation)
        if self.hidden_dim % self.num_heads:
            raise InvalidInputError(
                f"`num_heads` must divide `hidden_dim`, received num_heads={self.num_heads} and "
                f"hidden_dim={self.hidden_dim}."
            )

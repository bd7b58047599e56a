"""The declaration of the sequential recommender family, and its presets by name."""

from typing import Any

from keras_deepseek.models.family import Family

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

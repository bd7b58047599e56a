"""Models: a folder a family, each with its config, its backbone and its tasks.

All of them are plain Functional `keras.Model`s. What families share stands beside them:
`checkpoints` reads and writes their weights, `tokenizers` makes tokens of text.
"""

from keras_deepseek.models.bert import BertBackbone, BertConfig, BertMaskedLM
from keras_deepseek.models.residual_image_classifier import (
    ResidualBackbone,
    ResidualImageClassifier,
    ResidualImageClassifierConfig,
)
from keras_deepseek.models.sequential_recommender import (
    HitRate,
    Interactions,
    LeaveLastOut,
    NormalizedDiscountedCumulativeGain,
    PlantedInteractions,
    SequentialRecommender,
    SequentialRecommenderBackbone,
    SequentialRecommenderConfig,
    read_movielens,
)
from keras_deepseek.models.tokenizers import Tokenizer

__all__ = [
    "BertBackbone",
    "BertConfig",
    "BertMaskedLM",
    "HitRate",
    "Interactions",
    "LeaveLastOut",
    "NormalizedDiscountedCumulativeGain",
    "PlantedInteractions",
    "ResidualBackbone",
    "ResidualImageClassifier",
    "ResidualImageClassifierConfig",
    "SequentialRecommender",
    "SequentialRecommenderBackbone",
    "SequentialRecommenderConfig",
    "Tokenizer",
    "read_movielens",
]

"""Recommenders of the next item from a user's history of items, and their training data."""

from keras_deepseek.models.sequential_recommender.config import SequentialRecommenderConfig
from keras_deepseek.models.sequential_recommender.interactions import (
    Interactions,
    LeaveLastOut,
)
from keras_deepseek.models.sequential_recommender.movielens import read_movielens
from keras_deepseek.models.sequential_recommender.ranking_metrics import (
    HitRate,
    NormalizedDiscountedCumulativeGain,
)
from keras_deepseek.models.sequential_recommender.sequential_recommender import (
    SequentialRecommender,
)
from keras_deepseek.models.sequential_recommender.sequential_recommender_backbone import (
    SequentialRecommenderBackbone,
)
from keras_deepseek.models.sequential_recommender.synthetic_interactions import (
    SyntheticInteractions,
)

__all__ = [
    "HitRate",
    "Interactions",
    "LeaveLastOut",
    "NormalizedDiscountedCumulativeGain",
    "SequentialRecommender",
    "SequentialRecommenderBackbone",
    "SequentialRecommenderConfig",
    "SyntheticInteractions",
    "read_movielens",
]

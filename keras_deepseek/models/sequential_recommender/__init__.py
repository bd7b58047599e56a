"""Recommenders that read the items a user has had so far, and the data that they are trained on."""

from keras_deepseek.models.sequential_recommender.config import SequentialRecommenderConfig
from keras_deepseek.models.sequential_recommender.interactions import (
    Interactions,
    LeaveLastOut,
)
from keras_deepseek.models.sequential_recommender.movielens import read_movielens
from keras_deepseek.models.sequential_recommender.planted_interactions import PlantedInteractions
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

__all__ = [
    "HitRate",
    "Interactions",
    "LeaveLastOut",
    "NormalizedDiscountedCumulativeGain",
    "PlantedInteractions",
    "SequentialRecommender",
    "SequentialRecommenderBackbone",
    "SequentialRecommenderConfig",
    "read_movielens",
]

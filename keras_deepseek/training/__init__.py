"""Training: the `Trainer` around `model.fit`."""

from keras_deepseek.training.cluster import ClusterSpec
from keras_deepseek.training.trainer import Trainer

__all__ = ["ClusterSpec", "Trainer"]

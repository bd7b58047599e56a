"""Models: a folder a family, each with its config, its backbone and its tasks.

All of them are plain Functional `keras.Model`s.
"""

from keras_deepseek.models.residual_image_classifier import (
    ResidualBackbone,
    ResidualImageClassifier,
    ResidualImageClassifierConfig,
)

__all__ = ["ResidualBackbone", "ResidualImageClassifier", "ResidualImageClassifierConfig"]

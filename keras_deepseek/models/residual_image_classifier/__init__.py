"""Residual networks that classify images."""

from keras_deepseek.models.residual_image_classifier.config import ResidualImageClassifierConfig
from keras_deepseek.models.residual_image_classifier.model import (
    ResidualBackbone,
    ResidualImageClassifier,
)

__all__ = ["ResidualBackbone", "ResidualImageClassifier", "ResidualImageClassifierConfig"]

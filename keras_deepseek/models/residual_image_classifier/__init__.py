"""Residual networks that classify images."""

from keras_deepseek.models.residual_image_classifier.config import ResidualImageClassifierConfig
from keras_deepseek.models.residual_image_classifier.residual_backbone import ResidualBackbone
from keras_deepseek.models.residual_image_classifier.residual_image_classifier import (
    ResidualImageClassifier,
)

__all__ = ["ResidualBackbone", "ResidualImageClassifier", "ResidualImageClassifierConfig"]

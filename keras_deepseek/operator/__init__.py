"""The Kubernetes operator: serves a `ModelDeployment` and scales it by its requests.

This room needs the extra `operator`, and never imports Keras.
"""

from keras_deepseek.operator.api import ModelDeployment

__all__ = ["ModelDeployment"]

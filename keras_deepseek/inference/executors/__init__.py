"""Executors: they run a live Keras model, or a bundle in its own runtime."""

from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.executors.open_executor import open_executor

__all__ = ["Executor", "open_executor"]

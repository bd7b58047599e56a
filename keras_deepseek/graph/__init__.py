"""Graph optimization: a Keras model that computes the same with less work."""

from keras_deepseek.graph.optimization import optimize
from keras_deepseek.graph.optimized_model import OptimizationReport, OptimizedModel

__all__ = ["OptimizationReport", "OptimizedModel", "optimize"]


def __dir__() -> list[str]:
    return sorted(__all__)

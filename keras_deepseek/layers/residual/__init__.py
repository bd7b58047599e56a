"""Layers that decide how a model's residual passes by its other layers."""

from keras_deepseek.layers.residual.manifold_constrained_hyper_connections import (
    ManifoldConstrainedHyperConnections,
)
from keras_deepseek.layers.residual.residual_stream_collapse import ResidualStreamCollapse
from keras_deepseek.layers.residual.residual_stream_expansion import ResidualStreamExpansion

__all__ = [
    "ManifoldConstrainedHyperConnections",
    "ResidualStreamCollapse",
    "ResidualStreamExpansion",
]

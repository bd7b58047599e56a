"""Layers that widen, mix and merge the residual streams of a model."""

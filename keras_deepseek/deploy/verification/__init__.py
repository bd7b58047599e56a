"""Comparison of the outputs of an artifact with those of its model."""

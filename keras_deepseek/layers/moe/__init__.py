"""Mixtures of experts: each token uses a few of many feed-forward blocks."""

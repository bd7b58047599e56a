"""Batches in a known order from any position, and the state of random generators."""

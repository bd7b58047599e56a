"""Batches in a fixed order from any position, and the state of random number generators."""

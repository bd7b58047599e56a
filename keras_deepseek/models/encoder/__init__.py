"""Layers that encoder families share: blocks, position embeddings and activations."""

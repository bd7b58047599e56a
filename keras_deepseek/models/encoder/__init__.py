"""Layers that families of encoders share: blocks, positions, activations."""

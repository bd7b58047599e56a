"""Layers that turn hidden states into token predictions or their loss."""

"""Attention layers, and the key-value cache that they share."""

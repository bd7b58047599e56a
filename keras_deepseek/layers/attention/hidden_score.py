"""The constant that stands for the attention score of a hidden key."""

HIDDEN = -1e30
"""Replaces an attention score in float32 or better, or is added to one.

After the softmax such a key has no weight if any other key is visible. The number is finite, so a
query that sees no key, and its gradient, stay finite too.
"""

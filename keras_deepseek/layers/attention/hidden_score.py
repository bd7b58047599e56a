"""The score of a key that must not be attended to."""

HIDDEN = -1e30
"""Replaces an attention score in float32 or better, or is added to one.

After the softmax no weight is left on it beside any visible key. It is finite, so a query that sees
no key, and its gradient, stay finite too.
"""

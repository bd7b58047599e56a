"""Serving protocols: pure functions from request bytes to arrays, and from arrays to bytes."""

__all__: list[str] = []

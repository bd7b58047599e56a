"""What clients speak: pure functions from bytes to inputs, and from outputs to bytes."""

__all__: list[str] = []

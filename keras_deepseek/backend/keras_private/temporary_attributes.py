"""Context manager that temporarily replaces attributes of modules, classes or objects."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def temporary_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Context manager that sets attributes of an object, and restores the former values."""
    kept = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)

"""Attributes of modules, classes or objects that are replaced for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def temporary_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Sets attributes of an object, and restores the former values when the block ends."""
    kept = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)

"""Attributes of somebody else's that are others for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def lent_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Has a module, class or object hold other values, and in the end what it held before.

    Args:
        owner: What has the attributes.
        **values: Their values for as long as the block runs, by name.
    """
    kept = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)

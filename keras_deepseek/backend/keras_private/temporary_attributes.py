"""Context managers that temporarily replace attributes of modules, classes or objects."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def temporary_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Context manager that sets attributes of an object, and restores the former values."""
    old_values = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in old_values.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def own_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Context manager that gives an object its own attributes, such as methods.

    They are written into its `__dict__`: Keras and TensorFlow inspect each attribute that is set,
    which is slow.
    """
    attributes = vars(owner)
    old_values = {name: attributes[name] for name in values if name in attributes}
    attributes.update(values)
    try:
        yield
    finally:
        for name in values:
            attributes.pop(name, None)
        attributes.update(old_values)

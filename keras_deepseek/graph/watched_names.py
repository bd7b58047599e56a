"""The names that code was resolved to: attributes, globals, closures, and what they held."""

import operator
from collections.abc import Callable, Iterable
from typing import Any

MISSING = object()
_CONSTANTS = {type(None), bool, int, float, complex, str, bytes, type(Ellipsis)}


def is_constant(value: Any) -> bool:
    """Returns True for a number, a text or `None`, of a class of Python itself."""
    return type(value) in _CONSTANTS


class Watch:
    """The lookups that reading some code took, to tell whether they still have the same results.

    It holds the objects that the names had, so that no other object gets the id of one.
    """

    def __init__(self) -> None:
        self.results: dict[tuple[Callable[..., Any], int, str], tuple[Any, Any]] = {}
        """The owner and the result of each lookup."""

    def look_up(self, namespace: Any, name: str) -> Any:
        """Returns an item of a namespace, a dict, or `MISSING`."""
        return self._read(_get_item, namespace, name)

    def get_attribute(self, owner: Any, name: str) -> Any:
        """Returns an attribute, or `MISSING`."""
        return self._read(_get_attribute, owner, name)

    def get_elements(self, container: Any, name: str = "") -> list[Any]:
        """Returns the elements of a list, tuple or dict, keys included, or of an attribute."""
        elements: list[Any] = self._read(_get_elements, container, name)
        return elements

    def _read(self, read: Callable[..., Any], owner: Any, name: str) -> Any:
        result = read(owner, name)
        self.results.setdefault((read, id(owner), name), (owner, result))
        return result

    def add(self, watches: "Iterable[Watch]") -> None:
        """Adds the lookups of other watches."""
        for watch in watches:
            self.results.update(watch.results)

    def is_current(self) -> bool:
        """Returns True if all lookups have the same results as before."""
        for (read, _, name), (owner, old_result) in self.results.items():
            result = read(owner, name)
            if result is old_result:
                continue
            if read is not _get_elements or len(result) != len(old_result):
                return False
            if not all(map(operator.is_, result, old_result)):
                return False
        return True

    def token(self) -> tuple[Any, ...]:
        """Returns a hashable summary of the results; constants count by value."""
        return tuple(
            (id(owner), name, *map(_freeze, result if read is _get_elements else [result]))
            for (read, _, name), (owner, result) in self.results.items()
        )


def _get_item(namespace: Any, name: str) -> Any:
    return namespace.get(name, MISSING)


def _get_attribute(owner: Any, name: str) -> Any:
    return getattr(owner, name, MISSING)


def _get_elements(container: Any, name: str) -> list[Any]:
    if name:
        container = getattr(container, name)
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return list(container)


def _freeze(value: Any) -> Any:
    return (type(value), repr(value)) if is_constant(value) else id(value)


def find_in_class(kind: type, name: str) -> Any:
    """Returns what a class or its bases define for a name, without binding it, or `MISSING`."""
    return next((vars(owner)[name] for owner in kind.__mro__ if name in vars(owner)), MISSING)

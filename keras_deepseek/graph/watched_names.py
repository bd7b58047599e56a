"""The names that code was resolved to: attributes, globals, closures, and what they held."""

import operator
from collections.abc import Iterable
from typing import Any

PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
"""The types of constants."""
MISSING = object()


class Watch:
    """The lookups that reading some code took, to tell whether they still have the same results.

    It holds the objects that the names had, so that no other object gets the id of one.
    """

    def __init__(self) -> None:
        self._items: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self._attributes: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self._containers: dict[int, tuple[Any, list[Any]]] = {}

    def look_up(self, namespace: Any, name: str) -> Any:
        """Returns an item of a namespace, a dict, or `MISSING`."""
        value = namespace.get(name, MISSING)
        self._items.setdefault((id(namespace), name), (namespace, name, value))
        return value

    def get_attribute(self, owner: Any, name: str) -> Any:
        """Returns an attribute, or `MISSING`."""
        value = getattr(owner, name, MISSING)
        self._attributes.setdefault((id(owner), name), (owner, name, value))
        return value

    def get_elements(self, container: Any) -> list[Any]:
        """Returns the elements of a list, tuple or dict, keys included."""
        elements = _elements(container)
        self._containers.setdefault(id(container), (container, elements))
        return elements

    def add(self, watches: "Iterable[Watch]") -> None:
        """Adds the lookups of other watches."""
        for watch in watches:
            for lookups, further_lookups in zip(self.lookups(), watch.lookups(), strict=True):
                lookups.update(further_lookups)

    def lookups(self) -> tuple[dict[Any, Any], ...]:
        """Returns the lookups: of items, of attributes, and the elements of containers."""
        return self._items, self._attributes, self._containers

    def is_current(self) -> bool:
        """Returns True if all lookups have the same results as before."""
        for namespace, name, value in self._items.values():
            if namespace.get(name, MISSING) is not value:
                return False
        for owner, name, value in self._attributes.values():
            if getattr(owner, name, MISSING) is not value:
                return False
        for container, elements in self._containers.values():
            values = _elements(container)
            if len(values) != len(elements) or not all(map(operator.is_, values, elements)):
                return False
        return True

    def token(self) -> tuple[Any, ...]:
        """Returns a hashable summary of the results; constants count by value."""
        return (
            *(
                (id(namespace), name, _freeze(value))
                for namespace, name, value in self._items.values()
            ),
            *(
                (id(owner), name, _freeze(value))
                for owner, name, value in self._attributes.values()
            ),
            *((id(owner), *map(_freeze, values)) for owner, values in self._containers.values()),
        )


def _elements(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return list(container)


def _freeze(value: Any) -> Any:
    return (type(value), value) if isinstance(value, PLAIN_TYPES) else id(value)


def find_in_class(kind: type, name: str) -> Any:
    """Returns what a class or its bases define for a name, without binding it, or `MISSING`."""
    for owner in kind.__mro__:
        if name in vars(owner):
            return vars(owner)[name]
    return MISSING

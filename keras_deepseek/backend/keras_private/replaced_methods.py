"""Temporary replacement of methods of classes and functions of modules, for one context."""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Targets = Mapping[tuple[Any, str], Callable[..., Any]]
"""Replacements by a class or module, and the name of a function in it."""

_REPLACEMENTS: ContextVar[Targets | None] = ContextVar("replaced_methods", default=None)
_lock = threading.Lock()
_originals: dict[tuple[Any, str], Callable[..., Any]] = {}
_num_users: dict[tuple[Any, str], int] = {}


@contextmanager
def replaced_methods(replacements: Targets) -> Iterator[None]:
    """Context manager that replaces methods of classes and functions of modules.

    Each replacement gets the original first, then the arguments. Other threads, and code that holds
    the function itself, run the original.
    """
    outer = _REPLACEMENTS.get() or {}
    for target in replacements:
        _install(target)
    _REPLACEMENTS.set({**outer, **replacements})
    try:
        yield
    finally:
        # Not by a token: a generator may end in another thread than it began.
        _REPLACEMENTS.set(outer)
        for target in replacements:
            _uninstall(target)


def without_replacement(function: Any) -> Any:
    """Returns the original of a function that some thread has replaced, or the function itself."""
    return getattr(function, "replaced_original", function)


def _install(target: tuple[Any, str]) -> None:
    owner, name = target
    with _lock:
        _num_users[target] = _num_users.get(target, 0) + 1
        if _num_users[target] > 1:
            return
        original = _originals[target] = vars(owner)[name]

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            function = (_REPLACEMENTS.get() or {}).get(target)
            if function is None:
                return original(*args, **kwargs)
            return function(original, *args, **kwargs)

        replaced.replaced_original = original  # type: ignore[attr-defined]
        setattr(owner, name, replaced)


def _uninstall(target: tuple[Any, str]) -> None:
    with _lock:
        _num_users[target] -= 1
        if _num_users[target] == 0:
            setattr(*target, _originals.pop(target))

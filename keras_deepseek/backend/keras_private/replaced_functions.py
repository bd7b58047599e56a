"""Temporary replacement of functions of Keras, for one thread."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

_MODULES = (
    keras.ops,
    keras.ops.numpy,
    keras.src.ops,
    keras.src.ops.numpy,
    keras.backend,
    keras.src.backend,
    keras.src.backend.common.dtypes,
)
"""The modules through which layers, and Keras itself, call these functions."""

_of_thread = threading.local()
_lock = threading.Lock()
_users: dict[str, int] = {}
_originals: dict[str, tuple[Any, list[Any]]] = {}


@contextlib.contextmanager
def replaced_functions(**functions: Callable[..., Any]) -> Iterator[None]:
    """Context manager that replaces functions of `keras.ops` and `keras.src.backend` by name.

    Each replacement gets the original function first, then the arguments. Other threads, and code
    that holds the function itself, run the original.
    """
    outer = _functions_of_thread()
    for name in functions:
        _install(name)
    _of_thread.functions = {**outer, **functions}
    try:
        yield
    finally:
        _of_thread.functions = outer
        for name in functions:
            _uninstall(name)


def _functions_of_thread() -> dict[str, Callable[..., Any]]:
    return getattr(_of_thread, "functions", {})


def _install(name: str) -> None:
    with _lock:
        _users[name] = _users.get(name, 0) + 1
        if _users[name] > 1:
            return
        # `keras.src.backend` has some of the operations too, such as `cond`.
        owner = keras.ops if hasattr(keras.ops, name) else keras.src.backend
        original = getattr(owner, name)
        modules = [module for module in _MODULES if vars(module).get(name) is original]

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            function = _functions_of_thread().get(name)
            if function is None:
                return original(*args, **kwargs)
            return function(original, *args, **kwargs)

        _originals[name] = original, modules
        for module in modules:
            setattr(module, name, replaced)


def _uninstall(name: str) -> None:
    with _lock:
        _users[name] -= 1
        if _users[name] == 0:
            original, modules = _originals.pop(name)
            for module in modules:
                setattr(module, name, original)

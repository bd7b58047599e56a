"""The packages whose code is known: Keras, KerasHub and this one."""

import types
from typing import Any

_KNOWN = {"keras", "keras_hub", "keras_deepseek"}


def package_of(code: Any) -> str:
    """Returns the name of the package of a function or a class.

    A function's module is read from its globals, since `functools.wraps` changes `__module__`.
    """
    is_function = isinstance(code, types.FunctionType)
    module = code.__globals__.get("__name__", "") if is_function else code.__module__
    return str(module).partition(".")[0]


def is_known(code: Any, *other_packages: str) -> bool:
    """Returns True for a function or a class of a known package, or of one of the others."""
    return package_of(code) in _KNOWN.union(other_packages)

"""The rule that says whose code a program may run in place of.

A trace sees the operations of a layer, but not its Python: counters, branches by shape, questions
such as `isinstance(x, keras.KerasTensor)`, gradients of its own. So only the code of Keras,
KerasHub and this package is traced. A layer with any other code is kept whole.
"""

import contextlib
import copy
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers

_PACKAGES = {"keras", "keras_hub", "keras_deepseek"}
_OF_BASES = {"tensorflow", "jax", "flax", "torch", "builtins", "abc", "typing"}
"""The packages whose classes are bases of Keras's."""

_NOT_IN_CALL = {
    *("__init__", "__new__", "__repr__", "__reduce__", "__getstate__", "__setstate__"),
    *("build", "build_from_config", "get_build_config", "get_config", "from_config"),
    *("compile", "compile_from_config", "get_compile_config", "compute_loss", "compute_metrics"),
    *("compute_output_shape", "compute_output_spec", "metrics", "reset_metrics"),
    *("fit", "evaluate", "predict", "export", "summary", "save", "save_weights", "load_weights"),
    *("train_step", "test_step", "predict_step", "train_function", "make_train_function"),
    *("save_own_variables", "load_own_variables", "save_assets", "load_assets"),
}
"""Methods that no `call` of a known layer runs."""

_NOT_IN_CALL_SUFFIXES = ("_initializer", "_regularizer", "_constraint")
_SHARED = (
    *(str, bytes, int, float, bool, type(None), type, types.ModuleType),
    *(types.FunctionType, types.MethodType, functools.partial),
    *(keras.Operation, keras.Loss, keras.Metric, keras.optimizers.Optimizer),
    *(keras.callbacks.Callback, inspect.Signature),
)
"""The classes of attributes that are not copied: immutable ones, and objects with variables."""


def find_foreign_code(layer: Any) -> str | None:
    """Returns the name of code in a layer or operation that is not known, or `None`.

    It is a method, of the layer's class or written over that of a known class, or a function that
    the layer holds, such as an activation.
    """
    kind: Any = type(layer)
    if method := _find_foreign_method(kind, kind.call):
        return method
    # A model holds functions of its training, such as the compiled loss.
    attributes = {} if isinstance(layer, keras.Model) else vars(layer)
    for name, value in attributes.items():
        if name in _NOT_IN_CALL or name.endswith(_NOT_IN_CALL_SUFFIXES):
            continue
        for member in value if isinstance(value, list | tuple) else [value]:
            is_function = callable(member) and not isinstance(member, keras.Operation | type)
            if is_function and not _is_known(member, type(member)):
                return f"the {name!r} of {type(layer).__name__}"
    return None


@functools.lru_cache
def _find_foreign_method(kind: Any, _call: Any) -> str | None:
    """Returns the name of a foreign method that a known one may call.

    `_call` is that of the class, which somebody may replace. A class that only adds methods, or
    overrides those of training and saving, has none.
    """
    bases = [base for base in kind.__mro__ if _package(base.__module__) in _PACKAGES]
    for owner in kind.__mro__:
        for name, member in vars(owner).items():
            if name in _NOT_IN_CALL or not _is_code(member) or _is_known(member, owner):
                continue
            if any(hasattr(base, name) for base in bases):
                return f"{owner.__name__}.{name}"
    return None


def _package(module: str) -> str:
    return module.partition(".")[0]


def _is_code(member: Any) -> bool:
    descriptors = (property, classmethod, staticmethod, functools.cached_property)
    return not isinstance(member, type) and (callable(member) or isinstance(member, descriptors))


def _is_known(member: Any, owner: type) -> bool:
    """Returns True for code of a package that is known, whatever `functools.wraps` says of it."""
    for name in ("fget", "func", "__func__"):  # Of properties, partial functions and methods.
        member = getattr(member, name, None) or member
    is_function = isinstance(member, types.FunctionType)
    module = member.__globals__.get("__name__", "") if is_function else owner.__module__
    return _package(module) in _PACKAGES | _OF_BASES


@contextlib.contextmanager
def protected_attributes(model: keras.Model) -> Iterator[None]:
    """Context manager in which foreign code writes to copies of its layers' attributes.

    At the end the layers have their own again: counters, lists, running means.
    """
    owners = [
        inner
        for layer in flatten_layers(model)
        for owner in (layer, *getattr(layer, "operations", ()))
        if find_foreign_code(owner)
        for inner in (flatten_layers(owner) if isinstance(owner, keras.Layer) else [owner])
    ]
    memo = {
        id(uncopied): uncopied
        for owner in owners
        for uncopied in (owner, *getattr(owner, "variables", ()))
    }
    saved = [(vars(owner), dict(vars(owner))) for owner in {id(o): o for o in owners}.values()]
    try:
        for attributes, old_attributes in saved:
            attributes.update(_copies(old_attributes, memo))
        yield
    finally:
        for attributes, old_attributes in saved:
            for name in attributes.keys() - old_attributes.keys():
                del attributes[name]
            attributes.update(old_attributes)


def _copies(attributes: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """Returns copies of the attributes that foreign code may change in place."""
    copies = {}
    for name, value in attributes.items():
        if isinstance(value, _SHARED) or _holds_object_of_keras(value):
            continue
        tracker = getattr(value, "tracker", None)  # Of Keras's lists: it holds the layer's state.
        with contextlib.suppress(Exception):  # A lock or an open file can't be copied.
            copies[name] = copy.deepcopy(value, {**memo, id(tracker): tracker})
    return copies


def _holds_object_of_keras(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_object_of_keras, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set):
        return any(map(_holds_object_of_keras, value))
    return _package(type(value).__module__) == "keras"

"""The attributes of objects that code reads: layers, their methods and settings, modules."""

import types
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.graph.allowed_calls import READING_METHODS
from keras_deepseek.graph.code_values import Bound, Fixed, Kind, Reader, Super, Values
from keras_deepseek.graph.function_source import UnreadableCodeError
from keras_deepseek.graph.watched_names import MISSING, PLAIN_TYPES, Watch, find_in_class

PACKAGES = {"keras", "keras_hub", "keras_deepseek"}
"""The packages whose code is known."""
_VARIABLE_ATTRIBUTES = {
    "shape": Kind.PLAIN,
    "ndim": Kind.PLAIN,
    "path": Kind.PLAIN,
    "name": Kind.PLAIN,
    "dtype": Kind.DTYPE,
    "value": Kind.DATA,
    **dict.fromkeys(("assign", "assign_add", "assign_sub"), Kind.ASSIGN),
}


def package_of(module: Any) -> str:
    """Returns the name of the package of a module's name."""
    return str(module).partition(".")[0]


def is_container(value: Any) -> bool:
    """Returns True for Python's lists, tuples and dicts, and those in which Keras wraps them."""
    packages = {"builtins", "keras", "tensorflow"}
    return isinstance(value, list | tuple | dict) and package_of(type(value).__module__) in packages


class ObjectReader:
    """Looks up attributes without running code, and remembers what it has looked up.

    Args:
        layer: The layer whose code is read. Only its own methods may be called.
    """

    def __init__(self, layer: Any, watch: Watch) -> None:
        self._layer = layer
        self._watch = watch

    def wrap(self, value: Any, text: str) -> Values:
        """Returns the kind of an existing object. `text` is the code that stands for it."""
        if isinstance(value, (*PLAIN_TYPES, np.generic)):
            return {Kind.PLAIN}
        if isinstance(value, keras.Variable):  # On TensorFlow it is a tensor too.
            return {Fixed(value)}
        if isinstance(value, np.ndarray) or ops.is_tensor(value):
            if hasattr(type(value), "__iadd__"):
                raise UnreadableCodeError(f"reads {text}, an array whose numbers may change")
            return {Kind.DATA}
        return {Fixed(value)}

    def elements(self, container: Any, text: str) -> Values:
        """Returns the elements of a list, tuple or dict; of a dict, the values."""
        self._watch.get_elements(container)
        values = container.values() if isinstance(container, dict) else container
        return set().union(*(self.wrap(value, text) for value in values))

    def attribute(self, owner: Any, name: str, text: str) -> Values:
        """Returns what `owner.name` is."""
        if name.startswith("__"):
            raise UnreadableCodeError(f"reads {text}")
        if isinstance(owner, types.ModuleType):
            return self._attribute_of_module(owner, name, text)
        if isinstance(owner, keras.Variable):
            if name not in _VARIABLE_ATTRIBUTES:
                raise UnreadableCodeError(f"uses {text} of a variable")
            return {_VARIABLE_ATTRIBUTES[name]}
        if is_container(owner):
            if name not in READING_METHODS:
                raise UnreadableCodeError(f"uses {text}, which may change a list or dict")
            return {Reader(Fixed(owner), name)}
        if isinstance(owner, type):
            value = find_in_class(owner, name)
            if not isinstance(value, PLAIN_TYPES):
                raise UnreadableCodeError(f"uses {text} of a class")
            self._watch.get_attribute(owner, name)
            return {Kind.PLAIN}
        if isinstance(
            owner, types.FunctionType | types.BuiltinFunctionType | keras.random.SeedGenerator
        ):
            raise UnreadableCodeError(f"uses {text}")
        if isinstance(owner, keras.Layer) and owner is not self._layer:
            # A variable has the dtype of the layer in whose call it is read.
            dtypes = [self._watch.get_attribute(o, "compute_dtype") for o in (owner, self._layer)]
            if dtypes[0] != dtypes[1]:
                raise UnreadableCodeError(f"reads {text} of a layer of another dtype")
        return self._attribute_of_instance(owner, name, text)

    def attribute_of_super(self, target: Super, name: str, text: str) -> Values:
        """Returns what `super().name` is: a method."""
        kind = type(target.owner)
        bases = kind.__mro__[kind.__mro__.index(target.after) + 1 :]
        for base in bases:
            function = vars(base).get(name)
            self._watch.look_up(vars(base), name)
            if isinstance(function, types.FunctionType):
                return {Bound(function, target.owner, is_super=True)}
            if function is not None:
                break
        raise UnreadableCodeError(f"uses {text}, which is no method")

    def _attribute_of_module(self, module: Any, name: str, text: str) -> Values:
        value = vars(module).get(name, MISSING)
        if value is MISSING:
            raise UnreadableCodeError(f"uses {text}")
        self._watch.look_up(vars(module), name)
        if is_container(value) and not isinstance(value, tuple):
            raise UnreadableCodeError(f"reads {text}, which may change")
        return self.wrap(value, text)

    def _attribute_of_instance(  # noqa: PLR0911 - one line a kind of attribute
        self, owner: Any, name: str, text: str
    ) -> Values:
        kind = type(owner)
        if find_in_class(kind, "__getattribute__") is not object.__getattribute__:
            raise UnreadableCodeError(f"reads {text} by a `__getattribute__`")
        self._watch.get_attribute(owner, "__class__")
        member = find_in_class(kind, name)
        if isinstance(member, property):
            self._watch.get_attribute(kind, name)
            if isinstance(member.fget, types.FunctionType) and not is_of_known_package(member.fget):
                return {Bound(member.fget, owner, is_property=True)}
            return self._known_property(owner, name, text)
        if hasattr(type(member), "__set__") or hasattr(type(member), "attrname"):
            raise UnreadableCodeError(f"reads {text}, which is computed")
        if hasattr(owner, "__dict__"):
            value = self._watch.look_up(vars(owner), name)
            if value is not MISSING:
                return self.wrap(value, text)
        self._watch.get_attribute(kind, name)
        if member is MISSING:
            getter = find_in_class(kind, "__getattr__")
            if getter is MISSING:
                return set()  # Running it raises an error.
            if package_of(getter.__module__) != "torch":  # It keeps layers in a dict.
                raise UnreadableCodeError(f"reads {text} by a `__getattr__`")
            value = self._watch.get_attribute(owner, name)
            return set() if value is MISSING else self.wrap(value, text)
        if isinstance(member, staticmethod):
            return {Fixed(member.__func__)}
        if isinstance(member, types.FunctionType):
            return {Bound(member, owner)}
        if hasattr(type(member), "__get__"):
            raise UnreadableCodeError(f"uses {text}, a {type(member).__name__}")
        return self.wrap(member, text)

    def _known_property(self, owner: Any, name: str, text: str) -> Values:
        value = getattr(owner, name)
        if isinstance(value, list) and all(isinstance(layer, keras.Layer) for layer in value):
            return {Fixed(tuple(value))} if value else {Kind.PLAIN}
        if isinstance(value, keras.Variable):
            return self.wrap(value, text)
        if isinstance(value, PLAIN_TYPES):
            self._watch.get_attribute(owner, name)
            return {Kind.PLAIN}
        raise UnreadableCodeError(f"reads {text}, a property of Keras")


def is_of_known_package(function: types.FunctionType) -> bool:
    """Returns True for a function of Keras, KerasHub or this package."""
    return package_of(function.__globals__.get("__name__", "")) in PACKAGES

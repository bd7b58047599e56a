"""The values in code that is read: objects that exist, and stand-ins for what a run brings.

Settings, functions, layers and variables stand for themselves. Lists and dicts that the code makes
are real ones, so that it changes them as Python would.
"""

import enum
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.known_packages import is_known, package_of
from keras_deepseek.graph.code_rewriter import refuse
from keras_deepseek.graph.watched_names import MISSING, Watch, find_in_class, is_constant

CHANGING_METHODS = {"append", "extend", "insert", "pop", "reverse", "update", "setdefault"}
"""The methods that code may call on lists and dicts that it makes itself."""
_READING_METHODS = {"items", "keys", "values", "get", "index", "count", "copy"}


class Kind(enum.Enum):
    """Stand-ins for values other than tensors."""

    SIZE = "a number that depends on the shape of a tensor"
    SHAPE = "the shape of a tensor, or a list made of it"
    CHOICE = "a constant that the caller chooses, or a number of axes"
    DTYPE = "the dtype of a tensor, which frameworks write in other ways"
    ASSIGN = "the method of a variable that assigns it"


SIZE, SHAPE, CHOICE, DTYPE = Kind.SIZE, Kind.SHAPE, Kind.CHOICE, Kind.DTYPE


class Data:
    """A tensor, a number, `None`, or a structure of them.

    Args:
        is_none: True or False as soon as this is known; it is decided once.
    """

    def __init__(self, is_none: bool | None = None) -> None:
        self.is_none = is_none
        self.is_alone = False
        """True if a name is bound to the result of an operator, and nothing else refers to it."""


class Stored(list[Any]):
    """A list that exists outside of the code, which may only read it; for a dict it is a proxy."""


CONTAINERS = {list, tuple, dict, Stored, types.MappingProxyType}
ITERATORS = {zip, enumerate, reversed, types.GeneratorType, type(reversed([]))}
ITERATORS |= {type({}.items()), type({}.keys()), type({}.values())}


def is_tensor(value: Any) -> bool:
    """Returns True for a stand-in for a tensor, and for a variable of Keras."""
    return isinstance(value, Data | keras.Variable)


def flatten(value: Any) -> Iterator[Any]:
    """Yields the values in nested lists, tuples and dicts."""
    if type(value) in CONTAINERS:
        is_dict = type(value) in (dict, types.MappingProxyType)
        for element in value.values() if is_dict else value:
            yield from flatten(element)
    else:
        yield value


def is_plain(value: Any) -> bool:
    """Returns True for constants, and lists, tuples and dicts of them."""
    return all(map(is_constant, flatten(value)))


def is_data(value: Any) -> bool:
    """Returns True for tensors, numbers and sizes, and structures of them."""
    return all(
        is_tensor(leaf) or is_constant(leaf) or leaf is SIZE or leaf is SHAPE or leaf is CHOICE
        for leaf in flatten(value)
    )


def is_container(value: Any) -> bool:
    """Returns True for Python's lists, tuples and dicts, and those in which Keras wraps them."""
    packages = {"builtins", "keras", "tensorflow"}
    return isinstance(value, list | tuple | dict) and package_of(type(value)) in packages


class ObjectReader:
    """Looks up attributes, and remembers what it has looked up.

    Args:
        layer: The layer whose code is read.
        run: Reads the body of a property, and returns its result.
    """

    def __init__(self, layer: Any, watch: Watch, run: Callable[..., Any]) -> None:
        self._layer = layer
        self._watch = watch
        self._run = run

    def wrap(self, value: Any, text: str) -> Any:
        """Returns the value of an existing object. `text` is the code that stands for it."""
        for member in ("__getattribute__", "__class__"):  # `isinstance` runs them.
            getter = find_in_class(type(value), member)
            if isinstance(getter, property) or _is_of_user(getter):
                refuse(f"reads {text}, an object with a `{member}` of its own")
        if isinstance(value, keras.Variable | keras.random.SeedGenerator):
            if not is_known(type(value)):
                refuse(f"reads {text}, an object of a class of its own")
            return value
        if isinstance(value, np.ndarray) or ops.is_tensor(value):
            if hasattr(type(value), "__iadd__"):
                refuse(f"reads {text}, an array whose numbers may change")
            return Data(is_none=False)
        if not is_container(value):
            is_method = isinstance(value, types.BuiltinFunctionType)
            if type(value) in CONTAINERS | ITERATORS or (
                is_method and is_container(value.__self__)
            ):
                refuse(f"reads {text}, which may change")
            return value
        self._watch.get_elements(value)
        if isinstance(value, dict):
            if not all(map(is_constant, value)):
                refuse(f"reads {text}, which has keys that are no constants")
            elements = {key: self.wrap(inner, text) for key, inner in value.items()}
            return types.MappingProxyType(elements)
        return (tuple if isinstance(value, tuple) else Stored)(self.wrap(v, text) for v in value)

    def attribute(self, owner: Any, name: str) -> Any:  # noqa: PLR0911, PLR0912 - by kind of owner
        """Returns what `owner.name` is."""
        if name.startswith("__"):
            return refuse(f"reads .{name}")
        if type(owner) is super:
            return self._attribute_of_super(owner, name)
        if is_tensor(owner):
            return _attribute_of_tensor(owner, name)
        if is_constant(owner):
            return getattr(owner, name)
        if type(owner) in CONTAINERS:
            may_change = type(owner) in (list, dict) and name in CHANGING_METHODS
            if name not in _READING_METHODS and not may_change:
                refuse(f"uses .{name}, which may change a list or dict")
            return getattr(owner, name)
        if type(owner) is types.ModuleType:
            value = self._watch.look_up(vars(owner), name)
            if value is MISSING or (is_container(value) and not isinstance(value, tuple)):
                refuse(f"reads .{name}, which may change")
            return self.wrap(value, name)
        if isinstance(owner, type):
            _check_class(owner, name)
            if not is_constant(find_in_class(owner, name)):
                refuse(f"uses .{name} of a class")
            return self._watch.get_attribute(owner, name)
        functions = types.FunctionType | types.BuiltinFunctionType | types.MethodType
        if isinstance(owner, functions | Kind | keras.random.SeedGenerator):
            return refuse(f"uses .{name}")
        if isinstance(owner, keras.Layer) and owner is not self._layer:
            # A variable has the dtype of the layer in whose call it is read.
            dtypes = [self._watch.get_attribute(o, "compute_dtype") for o in (owner, self._layer)]
            if dtypes[0] != dtypes[1]:
                refuse(f"reads .{name} of a layer of another dtype")
        return self._attribute_of_instance(owner, name)

    def _attribute_of_super(self, target: Any, name: str) -> Any:
        owner, after = target.__self__, target.__thisclass__
        bases = type(owner).__mro__
        for base in bases[bases.index(after) + 1 :]:
            function = self._watch.look_up(vars(base), name)
            if isinstance(function, types.FunctionType):
                return types.MethodType(function, owner)
            if function is not MISSING:
                break
        return refuse(f"uses .{name}, which is no method")

    def _attribute_of_instance(self, owner: Any, name: str) -> Any:
        kind = type(owner)
        if find_in_class(kind, "__getattribute__") is not object.__getattribute__:
            refuse(f"reads .{name} by a `__getattribute__`")
        _check_class(kind, name)
        for source, attribute in ((owner, "__class__"), (owner, "__dict__"), (kind, name)):
            self._watch.get_attribute(source, attribute)
        member = find_in_class(kind, name)
        if isinstance(member, property):
            if isinstance(member.fget, types.FunctionType) and not is_known(member.fget):
                return self._run(member.fget, [owner], {})
            return self._known_property(owner, name)
        if hasattr(type(member), "__set__") or hasattr(type(member), "attrname"):
            refuse(f"reads .{name}, which a {type(member).__name__} computes")
        value = self._watch.look_up(vars(owner), name)
        if value is not MISSING:
            return self.wrap(value, name)
        if member is MISSING:  # PyTorch's `__getattr__` looks in a dict of layers.
            getter = find_in_class(kind, "__getattr__")
            if getter is MISSING or package_of(getter) != "torch":
                refuse(f"reads .{name} by a `__getattr__`, or it is missing")
            member = self._watch.get_attribute(owner, name)
        if isinstance(member, staticmethod):
            return member.__func__
        if isinstance(member, types.FunctionType):
            return types.MethodType(member, owner)
        if member is MISSING or hasattr(type(member), "__get__"):
            refuse(f"uses .{name}, a {type(member).__name__}")
        return self.wrap(member, name)

    def _known_property(self, owner: Any, name: str) -> Any:
        value = getattr(owner, name)
        if isinstance(value, list) and all(isinstance(layer, keras.Layer) for layer in value):
            return Stored(self._watch.get_elements(owner, name))
        if isinstance(value, keras.Variable) or is_constant(value):
            return self._watch.get_attribute(owner, name)
        return refuse(f"reads .{name}, a property of Keras")


def _is_of_user(member: Any) -> bool:
    is_function = isinstance(member, types.FunctionType)
    return is_function and not is_known(member, "torch", "tensorflow", "jax", "flax")


def _check_class(kind: type, name: str) -> None:
    """Raises an error if a metaclass decides what an attribute of a class is."""
    getter = find_in_class(type(kind), "__getattribute__")
    if getter is not type.__getattribute__ or find_in_class(type(kind), name) is not MISSING:
        refuse(f"reads .{name} by a metaclass")


def _attribute_of_tensor(owner: Any, name: str) -> Any:
    is_variable = isinstance(owner, keras.Variable)
    if is_variable and name in ("shape", "ndim"):
        return tuple(owner.shape) if name == "shape" else len(owner.shape)
    attributes: dict[str, Any] = {"shape": SHAPE, "dtype": DTYPE, "ndim": CHOICE}
    if is_variable:
        attributes = {"dtype": DTYPE, "value": Data(is_none=False)}
        attributes |= dict.fromkeys(("assign", "assign_add", "assign_sub"), Kind.ASSIGN)
    return attributes.get(name) or refuse(f"uses .{name}, which is no operation of Keras")

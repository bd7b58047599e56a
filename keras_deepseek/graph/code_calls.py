"""The checks of what rewritten code does with values, and the list of what it may call."""

import builtins
import math
import operator
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.known_packages import is_known, package_of
from keras_deepseek.graph.code_rewriter import REWRITTEN, refuse
from keras_deepseek.graph.code_values import (
    CHOICE,
    CONTAINERS,
    DTYPE,
    ITERATORS,
    SHAPE,
    SIZE,
    Data,
    Kind,
    flatten,
    is_data,
    is_plain,
    is_tensor,
)
from keras_deepseek.graph.watched_names import Watch, is_constant

_NOT_RECORDED = {
    *("custom_gradient", "cond", "switch", "scan", "associative_scan", "while_loop", "fori_loop"),
    *("map", "vectorized_map", "vectorize", "jvp"),
    *("convert_to_numpy", "is_tensor", "ndim", "empty", "empty_like"),
    *("nonzero", "unique", "bincount", "histogram"),
    *("segment_sum", "segment_max", "segment_min", "segment_prod"),
    *("elastic_transform", "get", "serialize", "deserialize"),
}
"""The functions of `keras.ops` that run other functions, read numbers, ask questions, or return
tensors whose size depends on numbers; and those of `keras.activations` that are no activations.

`ndim` is one of them since Keras answers with a tensor for a symbol, and a branch by it differs."""
_DRAWS = "normal uniform truncated_normal dropout categorical randint gamma beta binomial shuffle"
_SETTINGS = ("epsilon", "floatx", "image_data_format")
_NUMBERS = "abs min max round int float bool str range divmod pow"

_OPERATIONS = {
    function
    for module in (ops, ops.image, keras.activations)
    for name, function in vars(module).items()
    if isinstance(function, types.FunctionType) and name not in _NOT_RECORDED
    if function.__globals__["__name__"].startswith("keras.")
}
_RANDOM = {getattr(keras.random, name) for name in _DRAWS.split()}
_SETTING_READERS = {
    getattr(m, name): name for m in (keras.config, keras.backend) for name in _SETTINGS
}
_LIST_FUNCTIONS = {list, tuple, dict, zip, enumerate, reversed, len, sum}
_NUMBER_FUNCTIONS = {getattr(builtins, name) for name in _NUMBERS.split()}
_NUMBER_FUNCTIONS |= {f for f in vars(math).values() if isinstance(f, types.BuiltinFunctionType)}
_OUTSIDE = {"numpy", "torch", "jax", "tensorflow", "scipy"} | sys.stdlib_module_names - {"__main__"}
_ARGUMENTS_OF_WHERE = 3
_MOST_ELEMENTS = 20_000

_COMPARISONS = {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"}


class _Settings:
    """The settings of Keras, as attributes, so that a change of one is noticed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(keras.config, name)()


_KERAS_SETTINGS = _Settings()


class Operations:
    """Returns the results of operators and calls, or raises an error for one not on the list.

    Args:
        layer: The layer whose code is read.
        tracked: The ids of the layers that may be called.
        run: Runs a function of a user, rewritten, and returns its result.
    """

    def __init__(
        self, layer: Any, tracked: set[int], watch: Watch, run: Callable[..., Any]
    ) -> None:
        self.reads_sizes = False
        """True if the code computes with sizes in ways that may differ at sizes never tried."""
        self._layer = layer
        self._tracked = tracked
        self._watch = watch
        self._run = run

    def operator(self, name: str, run: Callable[..., Any], *values: Any) -> Any:
        """Returns the result of an operator or a comparison; `run` is for constants."""
        leaves = list(flatten(values))
        if not is_data(leaves):
            names = {type(leaf).__name__ for leaf in leaves if not is_data(leaf)}
            if any(leaf is DTYPE for leaf in leaves):
                refuse("asks for a dtype")
            refuse(f"computes with an object of the class {', '.join(sorted(names))}")
        has_size = any(leaf is SIZE or leaf is SHAPE for leaf in leaves)
        is_list = any(value is SHAPE or type(value) in CONTAINERS for value in values)
        if any(map(is_tensor, values)):
            if is_list:
                refuse("computes with a list and a tensor")
            self.reads_sizes |= has_size
            return Data(is_none=False)
        if name in _COMPARISONS and not is_plain(values):
            if any(map(is_tensor, leaves)):
                refuse("compares lists of tensors")
            self.reads_sizes |= has_size
            return SIZE if has_size else CHOICE
        if is_list and any(isinstance(value, Kind) for value in values):
            if name not in ("Add", "Mult") or SIZE in values or any(map(is_tensor, leaves)):
                refuse("computes with a shape")
            return SHAPE
        if not is_list and has_size:
            is_multiple = name == "Mult" and values.count(SIZE) == 1
            self.reads_sizes |= not (is_multiple or name in ("Add", "Sub", "USub", "UAdd"))
            return SIZE
        if CHOICE in values:
            return CHOICE
        return run(*values)

    def change(self, name: str, run: Callable[..., Any], value: Any, added: Any) -> Any:
        """Returns the value of a name after an assignment such as `+=`."""
        if type(value) is list:
            value += self.elements(added)
            return value
        writes_in_place = hasattr(type(ops.zeros(())), "__iadd__")  # And not only the name.
        is_shared = isinstance(value, Data) and not value.is_alone and writes_in_place
        if is_shared or not (isinstance(value, Data | Kind | tuple) or is_constant(value)):
            refuse("changes a value in place that others may hold")
        return self.keep(self.operator(name, run, value, added))

    def check_tensors(self, values: Any, text: str, is_exact: bool = True) -> None:
        """Raises an error if there is anything but tensors and constants in the arguments."""
        for value in flatten(values):
            if value is SIZE or value is SHAPE:
                self.reads_sizes |= is_exact
            elif not (is_data(value) or value is DTYPE or _is_generator(value)):
                refuse(f"passes a function or an object to {text}")

    def call(  # noqa: PLR0911 - one line a kind of function
        self, text: str, function: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Returns the result of a call; `text` is the code of the function."""
        values = [*args, *kwargs.values()]
        if isinstance(function, types.MethodType):
            return self._call_method(function, args, kwargs, text)
        if function is Kind.ASSIGN or id(function) in self._tracked:
            self.check_tensors(values, text)
            return Data()
        if type(function) not in (types.FunctionType, types.BuiltinFunctionType, type):
            refuse(f"calls {text}, which is no operation of Keras")
        if function in _LIST_FUNCTIONS:
            return self._call_for_list(function, args, kwargs)
        if function in _NUMBER_FUNCTIONS:
            return self._call_for_number(function, args, kwargs)
        owner = getattr(function, "__self__", None)
        is_method = isinstance(function, types.BuiltinFunctionType) and owner is not None
        if is_method and (type(owner) in CONTAINERS or is_constant(owner)):
            return self._call_method_of_list(function, args, kwargs, text)
        if isinstance(function, types.FunctionType) and not is_known(function):
            scope, file = function.__globals__, function.__code__.co_filename
            if file.startswith(REWRITTEN) and not scope["__builtins__"]:  # Of the code itself.
                return function(*args, **kwargs)
            if package_of(function) not in _OUTSIDE:
                return self._run(function, args, kwargs)
        return self._call_keras(function, values, text)

    def _call_keras(self, function: Any, values: list[Any], text: str) -> Any:
        if function is ops.shape:
            return SHAPE
        self.reads_sizes |= function is ops.size
        if function in _SETTING_READERS:
            return self._watch.get_attribute(_KERAS_SETTINGS, _SETTING_READERS[function])
        if function in (ops.dtype, keras.backend.standardize_dtype):
            return CHOICE
        if function in _RANDOM:
            if not any(map(_is_generator, values)):
                refuse("draws random numbers without a seed generator")
        elif function not in _OPERATIONS:
            refuse(f"calls {text}")
        is_where = function is ops.where and len(values) < _ARGUMENTS_OF_WHERE
        if is_where or (function is ops.repeat and any(map(is_tensor, values[1:]))):
            refuse(f"calls {text}, whose result has a size that depends on numbers")
        self.check_tensors(values, text, is_exact=function is not ops.reshape)
        return Data(is_none=False)

    def _call_method(self, method: Any, args: Any, kwargs: dict[str, Any], text: str) -> Any:
        owner, name, is_of_layer = method.__self__, method.__name__, method.__self__ is self._layer
        if isinstance(owner, keras.Layer) and not is_of_layer:
            refuse(f"calls {text}, a method of another layer")
        if not is_known(method.__func__):
            return self._run(method.__func__, (owner, *args), kwargs)
        is_helper = name.startswith("_") and not hasattr(keras.Layer, name)
        if not is_of_layer or not (is_helper or name in ("call", "compute_mask")):
            refuse(f"calls {text}")
        self.check_tensors([*args, *kwargs.values()], text)
        return Data()

    def _call_method_of_list(self, method: Any, args: Any, kwargs: Any, text: str) -> Any:
        """Calls a method of a list, dict or constant; `ObjectReader` lets no others be read."""
        owner, name, first = method.__self__, method.__name__, args[0] if args else None
        if is_constant(owner):
            is_allowed = all(map(is_constant, [*args, *kwargs.values()]))
        elif name in ("extend", "update"):
            mappings = {dict, types.MappingProxyType}
            is_allowed = type(first) in (CONTAINERS if name == "extend" else mappings)
        else:
            is_allowed = name == "append" or is_constant(first)
            is_allowed &= name not in ("index", "count") or is_plain(owner)
        if not is_allowed:
            refuse(f"calls {text} with a tensor or a size")
        return method(*args, **kwargs)

    def elements(self, value: Any) -> Iterable[Any]:
        """Returns what a loop over a list or an iterator yields."""
        is_long = type(value) is range and len(value) > _MOST_ELEMENTS
        if is_long or type(value) not in CONTAINERS | ITERATORS | {range, str}:
            refuse("loops over an object that is no list, or over a tensor or a size")
        elements: Iterable[Any] = value
        return elements

    def _call_for_list(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        first = args[0] if args else ()
        if first is SHAPE and function in (list, tuple, len):
            return CHOICE if function is len else SHAPE
        if is_tensor(first) and function is len:
            self.reads_sizes = True
            return SIZE
        for value in args:
            if not is_constant(value) or type(value) is str:
                self.elements(value)
        if function is sum:
            total = 0
            for element in first:
                total = self.operator("Add", operator.add, total, element)
            return total if len(args) == 1 and not kwargs else refuse("sums with a start")
        if function is dict and type(first) not in (dict, types.MappingProxyType):
            args = [[self.fit(pair, (None, None)) for pair in first]]
        result = function(*args, **kwargs)
        if function is dict and not all(map(is_constant, result)):
            refuse("has keys that are no constants")
        return result

    def _call_for_number(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        leaves = list(flatten([args, kwargs]))
        if all(map(is_constant, leaves)) and (function is not str or is_constant(*args)):
            return function(*args, **kwargs)
        if function is abs and is_tensor(*args):
            return Data(is_none=False)
        if any(map(is_tensor, leaves)) or not is_data(leaves) or function is range:
            refuse(f"reads a number by {function.__name__}, or counts to a size")
        has_size = any(leaf is SIZE or leaf is SHAPE for leaf in leaves)
        self.reads_sizes |= has_size
        return SIZE if has_size else CHOICE

    def item(self, value: Any, index: Any) -> Any:
        """Returns `value[index]`."""
        parts = index if type(index) is tuple else [index]
        slices = [(p.start, p.stop, p.step) if isinstance(p, slice) else (p,) for p in parts]
        bounds = [bound for bounds_of_part in slices for bound in bounds_of_part]
        is_fixed = all(map(is_constant, bounds))
        if not all(is_constant(b) or b is SIZE or b is CHOICE for b in bounds):
            refuse("takes a list or a tensor as an index")
        if value is SHAPE:
            return SHAPE if isinstance(index, slice) else SIZE
        if is_tensor(value):
            self.reads_sizes |= SIZE in bounds and isinstance(value, Data)
            return Data(is_none=None if isinstance(value, Data) else False)
        if not is_fixed or type(value) not in CONTAINERS | {str}:
            refuse("takes an element by a size, or of an object")
        return value[index]

    def set_item(self, text: str, value: Any, container: Any, index: Any) -> None:
        """Runs `container[index] = value`."""
        if type(container) not in (list, dict) or not is_constant(index):
            refuse(f"writes {text}")
        container[index] = value

    def fit(self, value: Any, pattern: Any) -> Any:
        """Returns a value, or its elements if names are assigned to them."""
        if pattern is None:
            return value
        if is_tensor(value) or value is SHAPE:
            value = [SIZE if value is SHAPE else Data() for _ in pattern]
        pairs = zip(self.elements(value), pattern, strict=True)
        return [self.fit(*pair) for pair in pairs]

    def constant(self, value: Any) -> Any:
        """Returns a value in a text, or a key, which must be a constant."""
        return value if is_constant(value) else refuse("has a tensor or a size in a text or a key")

    def keep(self, value: Any) -> Any:
        """Returns the result of an operator, to which only one name is bound."""
        if isinstance(value, Data):
            value.is_alone = True
        return value

    def share(self, value: Any) -> Any:
        """Returns the value of a name, to which others may refer from now on."""
        if isinstance(value, Data):
            value.is_alone = False
        return value


def _is_generator(value: Any) -> bool:
    return isinstance(value, keras.random.SeedGenerator)

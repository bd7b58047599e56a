"""The functions that code may call if a trace is to see all that it does."""

import builtins
import math
import sys
import types
from typing import Any

import keras
from keras import ops

from keras_deepseek.graph.code_values import Arguments, Kind
from keras_deepseek.graph.function_source import UnreadableCodeError

_NOT_RECORDED = {
    *("custom_gradient", "cond", "switch", "scan", "associative_scan", "while_loop", "fori_loop"),
    *("map", "vectorized_map", "vectorize", "jvp"),
    *("convert_to_numpy", "is_tensor", "ndim", "size", "empty", "empty_like"),
    *("nonzero", "unique", "bincount", "histogram"),
    *("segment_sum", "segment_max", "segment_min", "segment_prod"),
}
"""The functions of `keras.ops` that run other functions, read numbers, ask questions, or return
tensors whose size depends on numbers."""

_DRAWS = [
    *("normal", "uniform", "truncated_normal", "dropout", "categorical", "randint", "gamma"),
    *("beta", "binomial", "shuffle"),
]


def _functions(module: Any, excluded: Any) -> dict[int, Any]:
    members = (value for name, value in vars(module).items() if name not in excluded)
    functions = (value for value in members if isinstance(value, types.FunctionType))
    return {id(f): f for f in functions if f.__globals__["__name__"].startswith("keras.")}


OPERATIONS = {
    **_functions(ops, _NOT_RECORDED),
    **_functions(keras.activations, ("get", "serialize", "deserialize")),
}
"""The functions of tensors that a trace records, by id."""
SHAPE = ops.shape
DTYPES = (ops.dtype, keras.backend.standardize_dtype)
DRAWS = {id(function): function for function in (getattr(keras.random, name) for name in _DRAWS)}
"""The functions that draw random numbers, by id."""

_NAMES = [
    *("list", "tuple", "dict", "zip", "enumerate", "reversed", "len", "sum", "abs", "min"),
    *("max", "round", "int", "float", "bool", "str", "range", "divmod", "pow"),
]
BUILTINS = {
    id(function): function
    for function in (
        *(getattr(builtins, name) for name in _NAMES),
        *(value for value in vars(math).values() if isinstance(value, types.BuiltinFunctionType)),
    )
}
"""The functions of Python for lists, constants and sizes, by id."""


class _Settings:
    """The settings of Keras, as attributes, so that a change of one is noticed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(keras.config, name)()


SETTINGS = _Settings()
SETTING_FUNCTIONS = (
    *(keras.config.epsilon, keras.config.floatx, keras.config.image_data_format),
    *(keras.backend.epsilon, keras.backend.floatx, keras.backend.image_data_format),
)

MUTABLE_METHODS = {"append", "extend", "insert", "pop", "reverse", "update", "setdefault", "copy"}
"""The methods of lists and dicts that code may call on those that it makes itself."""
READING_METHODS = {"items", "keys", "values", "get", "index", "count"}

_ARGUMENTS_OF_WHERE = 3
_FRAMEWORKS = {"numpy", "torch", "jax", "tensorflow", "scipy"}


def is_outside(function: Any) -> bool:
    """Returns True for functions of frameworks and of Python's own library."""
    package = str(function.__globals__.get("__name__", "")).partition(".")[0]
    return package in _FRAMEWORKS or package in sys.stdlib_module_names - {"__main__"}


def check_arguments(function: Any, arguments: Arguments) -> None:
    """Raises an error for arguments with which the size of the result depends on numbers."""
    number = len(arguments.positional) + len(arguments.keywords)
    if function is ops.where and number < _ARGUMENTS_OF_WHERE and not arguments.starred:
        raise UnreadableCodeError(
            "calls ops.where, whose result has a size that depends on numbers"
        )
    counts = [*arguments.positional[1:2], arguments.keywords.get("repeats", set())]
    if function is ops.repeat and any(Kind.DATA in values for values in counts):
        raise UnreadableCodeError("calls ops.repeat with a tensor of numbers")

"""Tensors that layers make of sizes alone, such as `ops.arange(length)`, as operations.

Keras computes them at once, since a size is an int. In a program of free sizes they depend on the
inputs.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import tree

from keras_deepseek.backend.keras_private.layers import infers_shapes
from keras_deepseek.backend.keras_private.replaced_functions import replaced_functions
from keras_deepseek.graph.size_expressions import Size


@keras.saving.register_keras_serializable("keras_deepseek")
class Create(keras.Operation):
    """An operation that makes a tensor of numbers alone.

    Args:
        function: `"arange"`, `"ones"`, `"zeros"`, `"full"` or `"eye"`, of `keras.ops`. Its
            positional arguments are those of the operation.
        options: Its keyword arguments, among them the dtype.
    """

    def __init__(self, function: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.function = function
        self.options = dict(options)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"function": self.function, "options": dict(self.options)}

    def call(self, *args: Any) -> Any:
        """Returns the tensor."""
        if self.function == "arange" and type(args[0]) is int and args[::2] == (0, 1):
            args = args[1:2]  # As JAX takes a size that is not known.
        return getattr(keras.ops, self.function)(*args, **self.options)

    def compute_output_spec(self, *args: Any) -> keras.KerasTensor:
        """Returns the symbol of the tensor."""
        shape: Any = args[0]
        if self.function == "arange":
            start, stop, step = args
            is_exact = all(isinstance(number, int) for number in args)
            number = -((start - stop) // step) if is_exact else int(-((start - stop) // step))
            shape = (number if int(number) > 0 else 0,)
        elif self.function == "eye":
            shape = args[:2]
        return keras.KerasTensor(shape, self.options["dtype"])


def _arange(
    original: Callable[..., Any], start: Any, stop: Any = None, step: Any = None, dtype: Any = None
) -> Any:
    ones = [
        number if number is None else 1.0 if isinstance(number, float) else 1
        for number in (start, stop, step)
    ]
    numbers = (0, start) if stop is None else (start, stop)
    args = (*numbers, 1 if step is None else step)
    return _create("arange", args, original(*ones, dtype=dtype))


def _ones(original: Callable[..., Any], shape: Any, dtype: Any = None) -> Any:
    return _create("ones", (_as_shape(shape),), original((), dtype))


def _zeros(original: Callable[..., Any], shape: Any, dtype: Any = None) -> Any:
    return _create("zeros", (_as_shape(shape),), original((), dtype))


def _full(original: Callable[..., Any], shape: Any, fill_value: Any, dtype: Any = None) -> Any:
    return _create("full", (_as_shape(shape), fill_value), original((), fill_value, dtype))


def _eye(
    original: Callable[..., Any], rows: Any, columns: Any = None, k: Any = 0, dtype: Any = None
) -> Any:
    args = (rows, rows if columns is None else columns, k or 0)
    return _create("eye", args, original(1, dtype=dtype))


def _tri(
    original: Callable[..., Any], rows: Any, columns: Any = None, k: Any = 0, dtype: Any = None
) -> Any:
    shape = (rows, rows if columns is None else columns)
    square = _create("ones", (shape,), original(1, dtype=dtype))
    return keras.ops.tril(square, k)


def _cast(original: Callable[..., Any], x: Any, dtype: Any = None, *others: Any) -> Any:
    """Makes a tensor of a size, as for a mean or a scale."""
    if not isinstance(x, Size):
        return original(x, dtype, *others)
    return _create("full", ((), x), original(int(x), dtype))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "arange": _arange,
    "ones": _ones,
    "zeros": _zeros,
    "empty": _zeros,
    "full": _full,
    "eye": _eye,
    "identity": lambda original, n, dtype=None: _eye(original, n, dtype=dtype),
    "tri": _tri,
    "cast": _cast,
    "convert_to_tensor": _cast,
}


@contextlib.contextmanager
def creation_as_operations() -> Iterator[None]:
    """Context manager in which `keras.ops.arange`, `ones` and their like return symbols.

    They still return tensors where an argument is one, in other threads, and while Keras infers
    the shapes of an operation.
    """
    with replaced_functions(**{name: _unless_eager(name) for name in _FUNCTIONS}):
        yield


def _unless_eager(name: str) -> Callable[..., Any]:
    create = _FUNCTIONS[name]

    def run(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        numbers = tree.flatten([args, {**kwargs, "dtype": None}])
        if infers_shapes() or not all(
            isinstance(number, int | float | str | None) for number in numbers
        ):
            return original(*args, **kwargs)
        bound = inspect.signature(original).bind(*args, **kwargs)  # As the original complains.
        return create(original, *bound.args, **bound.kwargs)

    return run


def _create(function: str, args: tuple[Any, ...], example: Any) -> Any:
    dtype = keras.backend.standardize_dtype(example.dtype)
    return Create(function, {"dtype": dtype}).symbolic_call(*args)


def _as_shape(shape: Any) -> tuple[Any, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)

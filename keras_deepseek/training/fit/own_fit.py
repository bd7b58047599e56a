"""Models whose class overrides `fit`, as the tasks of KerasHub do to preprocess their data.

What an override does before and after `super().fit(...)` is done; in the place of Keras's `fit`
below it stands the trainer's own.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError

_NEEDED = ("x", "y", "batch_size", "epochs", "callbacks", "verbose")
"""The arguments of Keras's `fit` that a training always has."""


def call_fit(
    model: keras.Model, arguments: dict[str, Any], train: Callable[[dict[str, Any]], Any]
) -> Any:
    """Calls the `fit` of a model, with a function in the place of Keras's `fit` below it.

    Args:
        model: `keras.Model`.
        arguments: dict. The arguments of the model's `fit`, by name.
        train: Function of the arguments that reach Keras's `fit`.

    Returns:
        What the model's `fit` returns.

    Raises:
        InvalidInputError: It has not come to Keras's.
    """
    own = type(model)
    if own.fit is keras.Model.fit:
        return train(arguments)
    has_come = False
    keras_fit = inspect.signature(keras.Model.fit)
    defaults = {name: each.default for name, each in keras_fit.parameters.items()}

    class KerasFit(keras.Model):
        """Stands between the model's classes and `keras.Model`."""

        def fit(self, *given: Any, **options: Any) -> Any:
            nonlocal has_come
            has_come = True
            arguments = keras_fit.bind(self, *given, **options).arguments
            reached = {name: defaults[name] for name in _NEEDED} | arguments
            del reached["self"]
            with _as_class(model, own):
                return train(reached)

    # A class of its own for this one model: no class of Keras's or of the user's is changed.
    between = type(own.__name__, (own, KerasFit), {"__module__": own.__module__})
    # An override may lack arguments that nobody has set, or have defaults of its own.
    chosen = {
        name: value for name, value in arguments.items() if not _is(value, defaults.get(name))
    }
    with _as_class(model, between):
        returned = model.fit(**chosen)
    if not has_come:
        raise InvalidInputError(
            f"fit() of {own.__name__!r} has not called super().fit(...), so that the trainer had "
            "no part in what it did. Call it there, or override `train_step` instead of `fit`."
        )
    return returned


def keras_fit_arguments(model: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns what the `fit` of a model hands to Keras's `fit`; nothing is trained.

    Args:
        model: `keras.Model`.
        arguments: dict. The arguments of the model's `fit`, by name.

    Raises:
        InvalidInputError: It hands on nothing.
    """
    try:
        call_fit(model, arguments, _leave)
    except _FitReached as reached:
        return reached.arguments
    raise AssertionError  # pragma: no cover - call_fit has raised an error.


class _FitReached(BaseException):
    """Leaves an override from within."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def _leave(arguments: dict[str, Any]) -> None:
    raise _FitReached(arguments)


def _is(value: Any, default: Any) -> bool:
    return value is None or (isinstance(value, str | int | float) and value == default)


@contextmanager
def _as_class(model: keras.Model, kind: type) -> Iterator[None]:
    before = type(model)
    # Past the `__setattr__` of layers, which keeps count of what they are made of.
    object.__setattr__(model, "__class__", kind)
    try:
        yield
    finally:
        object.__setattr__(model, "__class__", before)

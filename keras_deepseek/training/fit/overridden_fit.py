"""Training of models whose class overrides `fit`, such as KerasHub's tasks.

The override runs. Only the `keras.Model.fit` that it calls is replaced, by the trainer's training.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError

_KERAS_FIT = inspect.signature(keras.Model.fit)
_DEFAULTS = {name: parameter.default for name, parameter in _KERAS_FIT.parameters.items()}
_ALWAYS_PASSED = ("x", "y", "batch_size", "epochs", "callbacks", "verbose")
"""The arguments of `keras.Model.fit` that a training always has."""


def call_overridden_fit(
    model: keras.Model, arguments: dict[str, Any], train: Callable[[dict[str, Any]], Any]
) -> Any:
    """Calls `model.fit`, with `train` in place of `keras.Model.fit`, and returns its result.

    `train` gets the arguments that reach `keras.Model.fit`.
    """
    return _OverriddenFit(model, train).call(arguments)


def keras_fit_arguments(model: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with which `model.fit` calls `keras.Model.fit`, if it is overridden."""
    if type(model).fit is keras.Model.fit:
        return arguments
    try:
        call_overridden_fit(model, arguments, _leave)
    except _FitReached as reached:
        return reached.arguments
    raise AssertionError  # pragma: no cover - the override has raised an error.


class _OverriddenFit:
    """A call of an overridden `fit`, during which a function replaces `keras.Model.fit`."""

    def __init__(self, model: keras.Model, train: Callable[[dict[str, Any]], Any]) -> None:
        self._model = model
        self._model_class = type(model)
        self._train = train
        self._is_keras_fit_reached = False

    def call(self, arguments: dict[str, Any]) -> Any:
        """Calls `model.fit` without the arguments that have Keras's default.

        An override may lack these arguments, or have defaults of its own.
        """
        chosen = {
            name: value
            for name, value in arguments.items()
            if not _is_default(value, _DEFAULTS.get(name))
        }
        with _temporary_class(self._model, self._make_class()):
            returned = self._model.fit(**chosen)
        if not self._is_keras_fit_reached:
            raise InvalidInputError(
                f"fit() of {self._model_class.__name__!r} has not called super().fit(...), so that "
                "the trainer could not train. Call super().fit(...) in it, or override "
                "`train_step` instead of `fit`."
            )
        return returned

    def _make_class(self) -> type:
        """Returns a subclass of the model's class, in which `super().fit` is `_replace_fit`.

        It is used for this one model, so that no class of Keras or of the user is changed.
        """
        last = type("KerasFit", (keras.Model,), {"fit": self._replace_fit})
        model_class = self._model_class
        return type(
            model_class.__name__, (model_class, last), {"__module__": model_class.__module__}
        )

    def _replace_fit(self, *positional: Any, **options: Any) -> Any:
        """Trains with the arguments that an overridden `fit` passes to `super().fit`."""
        self._is_keras_fit_reached = True
        arguments = dict(_KERAS_FIT.bind(self._model, *positional, **options).arguments)
        del arguments["self"]
        with _temporary_class(self._model, self._model_class):  # Callbacks must see this class.
            return self._train({name: _DEFAULTS[name] for name in _ALWAYS_PASSED} | arguments)


class _FitReached(BaseException):
    """The exception that leaves an overridden `fit` when it reaches `keras.Model.fit`."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def _leave(arguments: dict[str, Any]) -> None:
    raise _FitReached(arguments)


def _is_default(value: Any, default: Any) -> bool:
    return value is None or (isinstance(value, str | int | float) and value == default)


@contextmanager
def _temporary_class(model: keras.Model, model_class: type) -> Iterator[None]:
    old_class = type(model)
    # Not by `setattr`: the `__setattr__` of layers records each attribute.
    object.__setattr__(model, "__class__", model_class)
    try:
        yield
    finally:
        object.__setattr__(model, "__class__", old_class)

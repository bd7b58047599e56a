"""Saving of callbacks' state, such as the waiting count of `EarlyStopping`."""

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.packed_state import pack_state, unpack_state
from keras_deepseek.backend.keras_private.callbacks import SET_BY_KERAS
from keras_deepseek.callbacks.progress_display import ProgressDisplay
from keras_deepseek.callbacks.throughput_meter import ThroughputMeter
from keras_deepseek.errors import InvalidInputError

_logger = logging.getLogger(__name__)
_STATELESS = (keras.callbacks.ProgbarLogger, ProgressDisplay, ThroughputMeter)


class CallbackStates:
    """Reads and restores the state of the callbacks of a training.

    The state of a callback is each attribute that has changed since the training began. Saved are
    numbers, strings and arrays; dicts, lists, tuples and sets of them; and functions that another
    process finds by their names. A callback that has `get_state()` and `set_state(state)` defines
    its state itself.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        self._callbacks = [
            callback for callback in callbacks if not isinstance(callback, _STATELESS)
        ]
        self._at_start = [_digest_attributes(callback) for callback in self._callbacks]
        # A name stays in it: an attribute that has its first value again must still be saved.
        self._changed: list[set[str]] = [set() for _ in self._callbacks]
        self._nameless = [_nameless_functions(callback) for callback in self._callbacks]
        self._missing: list[str] = []

    def mark_begin(self) -> None:
        """Notes the attributes that `on_train_begin` has set, before the states are restored."""
        self._mark_changes()
        self._nameless = [_nameless_functions(callback) for callback in self._callbacks]

    def read(self) -> list[dict[str, Any]]:
        """Returns copies of the states of all callbacks."""
        self._mark_changes()
        for callback, functions in zip(self._callbacks, self._nameless, strict=True):
            _warn_of_nameless(callback, functions)
        return [
            {"class": type(callback).__qualname__, **_read(callback, changed)}
            for callback, changed in zip(self._callbacks, self._changed, strict=True)
        ]

    def write(self, states: list[dict[str, Any]]) -> None:
        """Restores the callback states that `read` returned, perhaps in another process.

        Callbacks are matched by their class and, within a class, by their order.
        """
        waiting = list(states)
        for index, callback in enumerate(self._callbacks):
            name = type(callback).__qualname__
            match = next((state for state in waiting if state["class"] == name), None)
            if match is not None:
                waiting.remove(match)
                written = _write(callback, match["state"], match.get("functions"))
                self._changed[index].update(written)
        names = [state["class"] for state in waiting if state["state"]]
        if names and names != self._missing:  # A resumed training restores several times.
            _logger.warning(
                "The checkpoint has the state of callbacks that this fit does not have: %s. Pass "
                "the same callbacks to continue them.",
                names,
            )
        self._missing = names

    def _mark_changes(self) -> None:
        for callback, start_digests, changed in zip(
            self._callbacks, self._at_start, self._changed, strict=True
        ):
            now = _digest_attributes(callback)
            changed.update(
                name for name, digest in now.items() if digest != start_digests.get(name)
            )


def _has_own_state(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _read(callback: keras.callbacks.Callback, changed: set[str]) -> dict[str, Any]:
    """Returns the state of a callback, and the names of those attributes that are functions."""
    if _has_own_state(callback):
        return {"state": _copy(*_pack(callback.get_state())), "functions": []}
    packed = _pack_attributes(callback)
    state = {name: _copy(*packed[name]) for name in packed if name in changed}
    return {
        "state": state,
        "functions": [name for name in state if _function_name(getattr(callback, name))],
    }


def _write(callback: keras.callbacks.Callback, state: Any, functions: list[str] | None) -> set[str]:
    """Restores what `_read` returned; returns the names of the attributes that it has set."""
    attributes = _copy(*_pack(state))  # A copy: the callback may change it in place.
    if _has_own_state(callback):
        callback.set_state(attributes)
        return set()
    if functions is None:
        # A checkpoint of an earlier release lacks the comparison function of `EarlyStopping`. Keras
        # will choose one again, and negate `min_delta` once more: do not restore it.
        attributes.pop("min_delta", None)
    for name in functions or ():
        function, attributes[name] = attributes[name], _find_function(attributes[name])
        if attributes[name] is None:
            raise InvalidInputError(
                f"{type(callback).__name__}.{name} is the function {function!r} in the checkpoint, "
                "and no imported module has it. Import its module before fit(resume=True), or "
                "remove the callback."
            )
    for name, value in attributes.items():
        setattr(callback, name, value)
    return set(attributes)


def _pack_attributes(callback: keras.callbacks.Callback) -> dict[str, tuple[str, list[Any]]]:
    """Packs the attributes of a callback that can be saved, functions as their names.

    Functions matter for `EarlyStopping`: when its first epoch ends, Keras chooses its comparison
    function, and negates `min_delta` to fit. Without the function, Keras would do so twice.
    """
    packed = {}
    for name, value in vars(callback).items():
        if name not in SET_BY_KERAS and not _has_own_state(callback):
            try:
                packed[name] = _pack(_function_name(value) or value)
            except InvalidInputError:
                _logger.debug("%s.%s is not saved.", type(callback).__name__, name)
    return packed


def _digest_attributes(callback: keras.callbacks.Callback) -> dict[str, str]:
    return {name: _digest(*packed) for name, packed in _pack_attributes(callback).items()}


def _function_name(value: Any) -> str | None:
    """Returns the module and name by which another process finds a function, or `None`."""
    if not (inspect.isroutine(value) or isinstance(value, np.ufunc)):
        return None
    name = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
    return name if _find_function(name) is value else None


def _find_function(name: str) -> Any:
    module, _, path = name.partition(":")
    value: Any = sys.modules.get(module)  # A checkpoint must not make Python import anything.
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def _nameless_functions(callback: keras.callbacks.Callback) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(callback).items()
        if inspect.isroutine(value) and not _function_name(value) and not _has_own_state(callback)
    }


def _warn_of_nameless(callback: keras.callbacks.Callback, functions: dict[str, Any]) -> None:
    """Warns once of each function of a callback that has no name to save it by, as a lambda.

    Adds the functions to `functions`, those that were warned of.
    """
    for name, value in _nameless_functions(callback).items():
        if functions.get(name) is not value:
            functions[name] = value
            _logger.warning(
                "%s.%s has become %s during the training, a function that a resumed training can't "
                "find by its name. Give the callback get_state() and set_state(state).",
                *(type(callback).__name__, name, value),
            )


def _pack(value: Any) -> tuple[str, list[Any]]:
    packed, arrays = pack_state(value)
    return json.dumps(packed), arrays


def _copy(text: str, arrays: list[Any]) -> Any:
    return unpack_state(json.loads(text), [array.copy() for array in arrays])


def _digest(text: str, arrays: list[Any]) -> str:
    digest = hashlib.blake2b(text.encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

"""Saving of callbacks' state, such as the waiting count of `EarlyStopping`."""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import keras

from keras_deepseek.artifacts.packed_state import pack_state, unpack_state
from keras_deepseek.backend.keras_private.callbacks import SET_BY_KERAS
from keras_deepseek.callbacks.progress_display import ProgressDisplay
from keras_deepseek.callbacks.throughput_meter import ThroughputMeter
from keras_deepseek.errors import InvalidInputError

_logger = logging.getLogger(__name__)
_STATELESS = (keras.callbacks.ProgbarLogger, ProgressDisplay, ThroughputMeter)


class CallbackStates:
    """Reads and restores the state of the callbacks of a training.

    The state of a callback is each attribute that has changed since the training began, if it
    consists of numbers, strings and arrays, and dicts, lists, tuples and sets of them. A callback
    that has `get_state()` and `set_state(state)` defines its state itself.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        self._callbacks = [
            callback for callback in callbacks if not isinstance(callback, _STATELESS)
        ]
        self._at_start = [
            {name: _digest(*packed) for name, packed in _pack_attributes(callback).items()}
            for callback in self._callbacks
        ]
        self._missing: list[str] = []

    def read(self) -> list[dict[str, Any]]:
        """Returns copies of the states of all callbacks."""
        return [
            {"class": type(callback).__qualname__, "state": _read(callback, at_start)}
            for callback, at_start in zip(self._callbacks, self._at_start, strict=True)
        ]

    def write(self, states: list[dict[str, Any]]) -> None:
        """Restores the callback states that `read` returned, perhaps in another process.

        Callbacks are matched by their class and, within a class, by their order.
        """
        waiting = list(states)
        for callback in self._callbacks:
            name = type(callback).__qualname__
            found = next((state for state in waiting if state["class"] == name), None)
            if found is not None:
                waiting.remove(found)
                _write(callback, found["state"])
        names = [state["class"] for state in waiting if state["state"]]
        if names and names != self._missing:  # A resumed training restores several times.
            _logger.warning(
                "The checkpoint has the state of callbacks that this fit does not have: %s. Pass "
                "the same callbacks to continue them.",
                names,
            )
        self._missing = names


def _has_own_state(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _read(callback: keras.callbacks.Callback, at_start: dict[str, str]) -> Any:
    if _has_own_state(callback):
        text, arrays = _pack(callback.get_state())
        return _copy(text, arrays)
    return {
        name: _copy(*packed)
        for name, packed in _pack_attributes(callback).items()
        if _digest(*packed) != at_start.get(name)
    }


def _write(callback: keras.callbacks.Callback, state: Any) -> None:
    text, arrays = _pack(state)  # A copy: the callback may change it in place.
    if _has_own_state(callback):
        callback.set_state(_copy(text, arrays))
        return
    for name, value in _copy(text, arrays).items():
        setattr(callback, name, value)


def _pack_attributes(callback: keras.callbacks.Callback) -> dict[str, tuple[str, list[Any]]]:
    found = {}
    for name, value in vars(callback).items():
        if name not in SET_BY_KERAS and not _has_own_state(callback):
            try:
                found[name] = _pack(value)
            except InvalidInputError:
                _logger.debug("%s.%s is not saved.", type(callback).__name__, name)
    return found


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

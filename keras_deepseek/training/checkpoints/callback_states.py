"""What callbacks remember: how long `EarlyStopping` has waited, what `History` holds."""

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
_SHOW_NO_MORE = (keras.callbacks.ProgbarLogger, ProgressDisplay, ThroughputMeter)


class CallbackStates:
    """Reads and writes what the callbacks of a training have come to remember since it began.

    That is each attribute that has changed since then and is made of numbers, strings, arrays, and
    dicts, lists, tuples and sets of them. A callback that has `get_state()` and `set_state(state)`
    says itself what it remembers.

    Args:
        callbacks: sequence of Keras callbacks, as the training is about to begin.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        self._callbacks = [
            callback for callback in callbacks if not isinstance(callback, _SHOW_NO_MORE)
        ]
        self._at_start = [
            {name: _digest(*packed) for name, packed in _pack_attributes(callback).items()}
            for callback in self._callbacks
        ]
        self._missing: list[str] = []

    def read(self) -> list[dict[str, Any]]:
        """Returns the states, as copies."""
        return [
            {"class": type(callback).__qualname__, "state": _read(callback, at_start)}
            for callback, at_start in zip(self._callbacks, self._at_start, strict=True)
        ]

    def write(self, states: list[dict[str, Any]]) -> None:
        """Gives each callback what the one of its class, in the same order, remembered.

        Args:
            states: list. What `read` returned, maybe in another process.
        """
        waiting = list(states)
        for callback in self._callbacks:
            name = type(callback).__qualname__
            found = next((state for state in waiting if state["class"] == name), None)
            if found is not None:
                waiting.remove(found)
                _write(callback, found["state"])
        names = [state["class"] for state in waiting if state["state"]]
        if names and names != self._missing:  # It is written several times as a training begins.
            _logger.warning(
                "The checkpoint has states of callbacks that this fit was not given: %s. Give it "
                "the same callbacks, if they are to go on from there.",
                names,
            )
        self._missing = names


def _keeps_state(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _read(callback: keras.callbacks.Callback, at_start: dict[str, str]) -> Any:
    if _keeps_state(callback):
        text, arrays = _pack(callback.get_state())
        return _copy(text, arrays)
    return {
        name: _copy(*packed)
        for name, packed in _pack_attributes(callback).items()
        if _digest(*packed) != at_start.get(name)
    }


def _write(callback: keras.callbacks.Callback, state: Any) -> None:
    text, arrays = _pack(state)  # It may be written again, and the callback may change it in place.
    if _keeps_state(callback):
        callback.set_state(_copy(text, arrays))
        return
    for name, value in _copy(text, arrays).items():
        setattr(callback, name, value)


def _pack_attributes(callback: keras.callbacks.Callback) -> dict[str, tuple[str, list[Any]]]:
    found = {}
    for name, value in vars(callback).items():
        if name not in SET_BY_KERAS and not _keeps_state(callback):
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

"""The loop over the steps of Keras's recurrent layers, which other code may run in its place."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras

_RUN: ContextVar[Callable[..., Any] | None] = ContextVar("run_inner_loop", default=None)
_CLASSES = (keras.layers.RNN, keras.layers.LSTM, keras.layers.GRU)
"""The classes that have a loop of their own."""
_KNOWN_LAYERS = {
    keras.layers.RNN: (keras.layers.RNN, keras.layers.SimpleRNN),
    keras.layers.LSTM: (keras.layers.LSTM,),
    keras.layers.GRU: (keras.layers.GRU,),
}
"""The layers whose loop is that of each class, and not a subclass's that calls it."""
_lock = threading.Lock()
_originals: list[Callable[..., Any]] = []
_open_blocks: list[Callable[..., Any]] = []


@contextmanager
def replaced_inner_loops(run: Callable[..., Any]) -> Iterator[None]:
    """Context manager in which `run` is called for the loop of each of Keras's recurrent layers.

    It is called as `run(loop, layer, sequences, initial_state, mask, training)` and returns what
    `loop(sequences, initial_state, mask, training)` does: the last output, the outputs, and the
    states. Other threads go on with Keras's loops.
    """
    outer = _RUN.get()
    _install(run)
    _RUN.set(run)
    try:
        yield
    finally:
        # Not by a token: a generator may end in another thread than it began.
        _RUN.set(outer)
        _uninstall(run)


def _install(run: Callable[..., Any]) -> None:
    with _lock:
        _open_blocks.append(run)
        if len(_open_blocks) == 1:
            _originals[:] = [vars(owner)["inner_loop"] for owner in _CLASSES]
            for owner, original in zip(_CLASSES, _originals, strict=True):
                owner.inner_loop = _replace(original, _KNOWN_LAYERS[owner])


def _uninstall(run: Callable[..., Any]) -> None:
    with _lock:
        _open_blocks.remove(run)
        if not _open_blocks:
            for owner, original in zip(_CLASSES, _originals, strict=True):
                owner.inner_loop = original


def _replace(original: Callable[..., Any], layer_types: tuple[type, ...]) -> Callable[..., Any]:
    def inner_loop(
        self: Any, sequences: Any, initial_state: Any, mask: Any, training: Any = False
    ) -> Any:
        run = _RUN.get()
        loop = functools.partial(original, self)
        if run is None or type(self) not in layer_types:
            return loop(sequences, initial_state, mask, training)
        return run(loop, self, sequences, initial_state, mask, training)

    return inner_loop

"""The loop over the steps of Keras's recurrent layers, which other code may run in its place."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.replaced_methods import replaced_methods

_KNOWN_LAYERS = {
    keras.layers.RNN: (keras.layers.RNN, keras.layers.SimpleRNN),
    keras.layers.LSTM: (keras.layers.LSTM,),
    keras.layers.GRU: (keras.layers.GRU,),
}
"""The classes that have a loop of their own, and the layers whose loop is theirs.

A subclass's loop that calls it is another one.
"""


def replaced_inner_loops(run: Callable[..., Any]) -> AbstractContextManager[None]:
    """Returns a context manager in which `run` is called for the loop of Keras's recurrent layers.

    It is called as `run(loop, layer, sequences, initial_state, mask, training)` and returns what
    `loop(sequences, initial_state, mask, training)` does: the last output, the outputs, and the
    states. Other threads go on with Keras's loops.
    """
    return replaced_methods(
        {
            (owner, "inner_loop"): functools.partial(_call, run, layer_types)
            for owner, layer_types in _KNOWN_LAYERS.items()
        }
    )


def _call(
    run: Callable[..., Any],
    layer_types: tuple[type, ...],
    original: Callable[..., Any],
    layer: Any,
    sequences: Any,
    initial_state: Any,
    mask: Any,
    training: Any = False,
) -> Any:
    loop = functools.partial(original, layer)
    if type(layer) not in layer_types:
        return loop(sequences, initial_state, mask, training)
    return run(loop, layer, sequences, initial_state, mask, training)

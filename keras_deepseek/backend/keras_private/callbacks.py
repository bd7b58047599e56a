"""The callbacks of a training that is under way."""

import inspect

import keras

SET_BY_KERAS = ("_model", "params")
"""The attributes of a callback that Keras sets when a training begins."""


def trained_model(callback: keras.callbacks.Callback) -> keras.Model:
    """Returns the model that a callback is told of, without reading its variables.

    On JAX, `callback.model` brings the values of all variables back, which the next step pays for.
    """
    return callback._model


def finish_callbacks(callbacks: keras.callbacks.CallbackList) -> None:
    """Waits for the callbacks that Keras runs in a thread of their own."""
    callbacks._flush_futures()


def callbacks_beside(callback: keras.callbacks.Callback) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of the training that is calling one of them, that one included.

    Keras tells a callback nothing of the others, so the call itself is asked: it goes through the
    list of them.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and any(
            each is callback for each in caller.callbacks
        ):
            return list(caller.callbacks)
        frame = frame.f_back
    return [callback]

"""The callbacks of a training that is running."""

import inspect

import keras

SET_BY_KERAS = ("_model", "params")
"""The attributes of a callback that Keras sets when a training begins."""


def trained_model(callback: keras.callbacks.Callback) -> keras.Model:
    """Returns the model of a callback, without copying its variables.

    On JAX, `callback.model` copies the values of all variables back, which slows the next step.
    """
    return callback._model


def finish_callbacks(callbacks: keras.callbacks.CallbackList) -> None:
    """Waits for the callbacks that Keras runs in a thread."""
    callbacks._flush_futures()


def active_callbacks(callback: keras.callbacks.Callback) -> list[keras.callbacks.Callback]:
    """Returns all callbacks of the running training, from within one of them.

    Keras gives no access to the others, so this searches the call stack for their list.
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

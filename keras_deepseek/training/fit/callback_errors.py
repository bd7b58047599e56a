"""A StopIteration out of a callback, which Keras's loops would take for the end of the data."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

_HOOKS = [name for name in dir(keras.callbacks.Callback) if name.startswith("on_")]


@contextmanager
def telling_from_the_data(callbacks: Sequence[keras.callbacks.Callback]) -> Iterator[None]:
    """Makes a StopIteration of a callback a RuntimeError, as Python does in generators (PEP 479).

    Args:
        callbacks: sequence of Keras callbacks; their methods are put back when the block ends.
    """
    lent: list[tuple[keras.callbacks.Callback, str, Any]] = []
    try:
        for callback in callbacks:
            for name in _HOOKS:
                hook = getattr(callback, name)
                # Keras passes over hooks that nobody has overridden, and knows them by this.
                if not getattr(hook, "_is_default", False):
                    lent.append((callback, name, vars(callback).get(name)))
                    setattr(callback, name, _refuse_stop_iteration(callback, name, hook))
        yield
    finally:
        for callback, name, own in reversed(lent):
            if own is None:
                delattr(callback, name)
            else:
                setattr(callback, name, own)


def _refuse_stop_iteration(
    callback: keras.callbacks.Callback, name: str, hook: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(hook)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return hook(*arguments, **options)
        except StopIteration as error:
            raise RuntimeError(
                f"{type(callback).__name__}.{name} raised StopIteration, by which data say that "
                "they have ended. To end a training, set self.model.stop_training = True."
            ) from error

    return run

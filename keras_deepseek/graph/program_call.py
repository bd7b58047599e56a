"""A `call` by programs, which a model has for the time of a `with` block."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from keras_deepseek.backend.keras_private.layers import infers_shapes
from keras_deepseek.backend.keras_private.sample_values import longest_sequence
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.graph.ir import Shape
from keras_deepseek.graph.passes import PASSES
from keras_deepseek.graph.plans import Plans
from keras_deepseek.graph.trace import TemporaryCall, as_symbols

_BATCH_SIZE, _LENGTH = 32, 128
"""The sizes that stand for unknown ones, where costs are compared."""


class ProgramCall(TemporaryCall):
    """The `call` of a model by programs that all passes have rewritten.

    Costs alone decide; nothing is timed. The model's own call is run before the model is built, for
    inputs without a program that was compared with it, and while Keras infers shapes.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._plans: Plans | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Makes this object the `call` of the model in a `with` block, then restores its own."""
        with own_attributes(self._model, call=self):
            yield

    def has_program(self, inputs: Any, *, training: bool = False) -> bool:
        """Returns True if a program runs for these inputs, and False if the model does."""
        return self._plans is not None and self._plans.has_program(inputs, training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the outputs of the model for the arguments of its `call`."""
        own_call = functools.partial(type(self._model).call, self._model, *args, **kwargs)
        training = kwargs.pop("training", None)
        # The mask of a dict of inputs is a dict, of `None` where there is none.
        has_others = len(args) != 1 or any(leaf is not None for leaf in tree.flatten(kwargs))
        if has_others or not self._model.built or infers_shapes():
            return own_call()
        with self._lock:
            if self._plans is None:
                self._plans = Plans(self._model, tuple(PASSES), _example(self._model, args[0]))
        return self._plans.run(args[0], bool(training), own_call)


def _example(model: keras.Model, inputs: Any) -> Any:
    """Returns symbols like the inputs, with sizes in place of those that are unknown."""
    length = min(longest_sequence(model) or _LENGTH, _LENGTH)

    def fill(shape: Any) -> Shape:
        return tuple(size or (length if axis else _BATCH_SIZE) for axis, size in enumerate(shape))

    return as_symbols(inputs, [fill(tensor.shape) for tensor in tree.flatten(inputs)])

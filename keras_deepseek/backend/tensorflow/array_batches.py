"""Batches of arrays as tensors, and steps that are compiled for them.

Keras compiles a step for an iterator over a `tf.data` pipeline. For a small step, that iterator and
its pipeline take longer than the step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deepseek.backend.data.array_feed import ArrayFeed
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes

_MOST_BYTES = 2**24
_MOST_BATCHES = 64
"""The most bytes and batches that are gathered at once."""


class ArrayPasses:
    """An iterable over passes through arrays, in place of a `tf.data` pipeline."""

    def __init__(self, feed: ArrayFeed) -> None:
        # A copy, as in a pipeline: the user may write to the arrays.
        self._tensors = [
            tf.constant(array) if isinstance(array, np.ndarray) else tf.convert_to_tensor(array)
            for array in feed.arrays or ()
        ]
        self._orders = feed.row_orders() if feed.shuffles else None
        self._feed = feed
        # As in Keras's pipeline: a step that is traced for other sizes may round differently.
        size = None if feed.has_partial_batch else feed.batch_size
        specs = [tf.TensorSpec((size, *tensor.shape[1:]), tensor.dtype) for tensor in self._tensors]
        self._specs = self._pack(specs)

    def __iter__(self) -> "ArrayPass":
        orders = None if self._orders is None else iter(self._orders)
        return ArrayPass(self._batches(orders), self._specs)

    def _batches(self, orders: Iterator[Any] | None) -> Iterator[Any]:
        num_rows, size = self._feed.num_rows, self._feed.batch_size
        order = np.arange(num_rows) if orders is None else next(orders).numpy()
        num_bytes = sum(tensor.dtype.size * math.prod(tensor.shape) for tensor in self._tensors)
        batch_bytes = max(1, num_bytes // num_rows * size)
        num_at_once = min(max(1, _MOST_BYTES // batch_bytes), _MOST_BATCHES)
        for start in range(0, num_rows, size * num_at_once):
            rows = order[start : start + size * num_at_once]
            sizes = [min(size, len(rows) - first) for first in range(0, len(rows), size)]
            parts = [tf.split(tf.gather(tensor, rows), sizes) for tensor in self._tensors]
            yield from map(self._pack, zip(*parts, strict=True))

    def _pack(self, leaves: Any) -> Any:
        return keras.tree.lists_to_tuples(self._feed.pack(leaves))


class ArrayPass:
    """An iterator over the batches of one pass.

    Args:
        batches: Iterator over structures of tensors.
        specs: The shapes and dtypes of a batch.
    """

    def __init__(self, batches: Iterator[Any], specs: Any) -> None:
        self._batches = batches
        self.specs = specs

    def __iter__(self) -> "ArrayPass":
        return self

    def __next__(self) -> Any:
        return next(self._batches)


class ArrayStep:
    """A step that runs as Keras compiled it, or for an `ArrayPass` as it is compiled for tensors.

    Args:
        model: The model, which says how to compile.
        step: Function of a batch.
        by_keras: The function that Keras made of `step`.
    """

    def __init__(
        self, model: keras.Model, step: Callable[[Any], Any], by_keras: Callable[[Any], Any]
    ) -> None:
        @tf.autograph.experimental.do_not_convert
        def run(batch: Any) -> Any:
            return model.distribute_strategy.run(step, args=(batch,))

        self._function = tf.function(run, reduce_retracing=True, jit_compile=model.jit_compile)
        self._compiled: tuple[Any, Any] = None, None  # The specs of the batches, and for them.
        self.by_keras = by_keras

    def __call__(self, iterator: Any) -> Any:
        """Runs the step on the next batch."""
        if not isinstance(iterator, ArrayPass):
            return self.by_keras(iterator)
        specs, compiled = self._compiled
        if specs is not iterator.specs:
            compiled = self._function.get_concrete_function(iterator.specs)
            self._compiled = iterator.specs, compiled
        return compiled(next(iterator))


class ArrayEvaluation:
    """Lets a model evaluate arrays by an `ArrayStep`, which is kept between evaluations."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._step: ArrayStep | None = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Context manager in which the model has the step."""
        model = self._model
        if "make_test_function" in vars(model) and not is_in_use(model):
            yield
            return
        with own_attributes(model, make_test_function=self._make_function):
            try:
                yield
            finally:
                if isinstance(model.test_function, ArrayStep):
                    model.test_function = model.test_function.by_keras

    def _make_function(self, force: bool = False) -> None:
        """Replaces `keras.Model.make_test_function`."""
        model = self._model
        type(model).make_test_function(model, force=force)
        function = model.test_function
        if not isinstance(function, ArrayStep):
            if self._step is None or self._step.by_keras is not function:
                self._step = ArrayStep(model, model.test_step, function)
            model.test_function = self._step


def is_in_use(model: keras.Model) -> bool:
    """Returns True if a model may evaluate arrays by an `ArrayStep`."""
    make_function = vars(model).get("make_test_function")
    return isinstance(getattr(make_function, "__self__", None), ArrayEvaluation)

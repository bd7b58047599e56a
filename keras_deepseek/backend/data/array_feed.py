"""Arrays whose batches Keras's loops take without a `DataLoader` or a `tf.data` pipeline."""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.datasets import (
    ArrayAdapter,
    cast_arrays,
    set_aside_validation,
)

_OF_THE_DATA = ("x", "y", "sample_weight", "class_weight", "batch_size", "shuffle")

_FUNCTIONS = {
    "fit": "make_train_function",
    "evaluate": "make_test_function",
    "predict": "make_predict_function",
}
"""The method of a model that makes the function of a step, by the method that takes the data."""


class ArrayFeed(ArrayAdapter):
    """Keras's adapter for dense arrays of numbers, whose batches are cut by `Step.feed_arrays`.

    The batches, their order, and the random number generators afterwards are those of Keras.
    """

    @functools.cached_property
    def arrays(self) -> list[Any] | None:
        """The arrays with floats in Keras's `floatx`, or `None` if one is not dense numbers."""
        arrays = cast_arrays(self)
        return arrays if all(map(_has_numbers, arrays)) else None

    @functools.cached_property
    def pack(self) -> Callable[[list[Any]], Any]:
        """A function that makes a batch of its arrays."""
        structure = self.structure
        if not keras.tree.is_nested(structure):
            return operator.itemgetter(0)
        if type(structure) is tuple and not any(map(keras.tree.is_nested, structure)):
            return tuple
        return functools.partial(keras.tree.pack_sequence_as, structure)

    def batches(
        self, order: Any = None, convert: Callable[[Any], Any] = lambda array: array
    ) -> Iterator[Any]:
        """Yields the batches of a pass, with converted arrays.

        `order` holds the numbers of all rows. `None`: the arrays are views of the user's.
        """
        arrays, pack, size = self.arrays or [], self.pack, self.batch_size
        for start in range(0, self.num_rows, size):
            rows = slice(start, start + size) if order is None else order[start : start + size]
            yield pack([convert(array[rows]) for array in arrays])

    def row_orders(self) -> Iterable[Any]:
        """Returns an iterable over passes, each an iterator that yields the order of all rows.

        It is that of Keras's shuffled `tf.data` pipeline, which makes it in the same way for any
        arrays and batches.
        """
        numbers = np.arange(self.num_rows)
        adapter = ArrayAdapter(numbers, batch_size=self.num_rows, shuffle=self.shuffles)
        orders: Iterable[Any] = adapter.get_tf_dataset()
        return orders

    def get_torch_dataloader(self) -> Iterable[Any]:
        return backend.current().step.feed_arrays(self)

    def get_jax_iterator(self) -> Iterable[Any]:
        return backend.current().step.feed_arrays(self)

    def get_tf_dataset(self) -> Iterable[Any]:
        return backend.current().step.feed_arrays(self)


def with_fed_arrays(model: keras.Model, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Replaces arrays in the arguments of `fit`, `evaluate` or `predict` by an `ArrayFeed`.

    Other data stay as they are, and so do arrays where Keras's own way is as fast.
    """
    shuffle = arguments.get("shuffle", method == "fit")
    if not _can_feed(model, method, {**arguments, "shuffle": shuffle}):
        return arguments
    options = {**set_aside_validation(arguments), "shuffle": shuffle}
    data = {name: options.pop(name) for name in _OF_THE_DATA if name in options}
    steps = options.get("steps_per_epoch" if method == "fit" else "steps")
    feed = ArrayFeed(**data, steps=steps)
    if feed.arrays is None:
        return arguments
    return {**options, "x": feed}


def with_fed_validation(model: keras.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    """Replaces arrays in the `validation_data` of the arguments of `fit` by an `ArrayFeed`."""
    validation = arguments.get("validation_data")
    if not isinstance(validation, tuple | list):
        return arguments
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(validation)
    test_arguments = {
        "x": x,
        "y": y,
        "sample_weight": sample_weight,
        "batch_size": arguments.get("validation_batch_size"),
        "steps": arguments.get("validation_steps"),
    }
    fed_arguments = with_fed_arrays(model, "evaluate", test_arguments)
    if fed_arguments is test_arguments:
        return arguments
    return {**arguments, "validation_data": fed_arguments["x"]}


def _can_feed(model: keras.Model, method: str, data: dict[str, Any]) -> bool:
    parts = [data.get(name) for name in ("x", "y", "sample_weight")]
    leaves = [leaf for part in parts if part is not None for leaf in keras.tree.flatten(part)]
    return (
        all(hasattr(leaf, "__array__") and len(leaf.shape) and leaf.shape[0] for leaf in leaves)
        and keras.config.max_steps_per_epoch() is None
        and keras.distribution.distribution() is None
        and int(model.steps_per_execution) == 1
        and _is_of_keras(model, method)
        and backend.current().step.can_feed_arrays(model, method, data.get("shuffle", False))
    )


def _is_of_keras(model: keras.Model, method: str) -> bool:
    """Returns True if Keras's own loop takes the data, and its own function runs the steps.

    `fit` is always called in Keras's own form.
    """
    inherited = [_FUNCTIONS[method], *([] if method == "fit" else [method])]
    return method not in vars(model) and all(
        getattr(type(model), name) is getattr(keras.Model, name) for name in inherited
    )


def _has_numbers(array: Any) -> bool:
    """Returns True for a plain array of numbers, and for a tensor of them."""
    if type(array) in (np.ndarray, np.memmap):
        return array.dtype.kind in "biuf"
    is_tensor = array is not None and keras.ops.is_tensor(array)
    return is_tensor and keras.backend.standardize_dtype(array.dtype) != "string"

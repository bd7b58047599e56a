"""Batches as Keras's training loop on TensorFlow takes them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.keras_private.keras_internals import from_scipy, tensorflow_specs


def prefers_own_feed(x: Any) -> bool:
    """Returns whether `feed_batches` is faster for data than how Keras itself feeds them."""
    return False  # Keras feeds arrays by tf.data, which runs ahead.


def feed_batches(make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
    """Returns what Keras's training loop goes through once an epoch."""

    def generate() -> Iterator[Any]:
        for batch in make_batches():
            yield keras.tree.map_structure(_to_tensor, keras.tree.lists_to_tuples(batch))

    # The specs leave the number of rows open, so that the step is traced once: a step that was
    # traced for another number of rows may round otherwise.
    dataset = tf.data.Dataset.from_generator(
        generate, output_signature=tensorflow_specs(keras.tree.lists_to_tuples(specs))
    )
    # Nothing runs ahead: after a step, what was drawn is what was asked for.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    fed: Iterable[Any] = dataset.with_options(options)
    return fed


def _to_tensor(value: Any) -> Any:
    return tf.experimental.Optional.empty(None) if value is None else from_scipy(value)

"""Functions that go on from a state, compiled, and the memory that such a state has."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_deepseek.backend.gradient_free import without_gradients


def compile_with_state(
    function: Callable[..., tuple[Any, Any]], variables: Sequence[keras.Variable]
) -> Callable[..., tuple[Any, Any]]:
    """Returns `function(state, *inputs)`, which makes outputs and the next state, compiled."""

    @tf.function(autograph=False)
    def begin(inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        with without_gradients():
            return function(None, *inputs)

    # What is kept from step to step lies in variables of TensorFlow: it writes slots into these,
    # and would copy a tensor for them.
    @tf.function(autograph=False)
    def go_on(state: Any, inputs: tuple[Any, ...]) -> Any:
        with without_gradients():
            outputs, new = function(state, *inputs)
        for kept, tensor in zip(_flatten(state), _flatten(new), strict=True):
            if tensor is not kept:
                kept.assign(tensor)
        return outputs

    def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
        tensors = keras.tree.map_structure(_make_tensor, inputs)
        if state is None:
            outputs: tuple[Any, Any] = begin(tensors)
            return outputs
        state = keras.tree.map_structure(_make_variable, state)
        return go_on(state, tensors), state

    return step


def _flatten(state: Any) -> list[Any]:
    flat: list[Any] = keras.tree.flatten(state)
    return flat


def _make_tensor(value: Any) -> Any:
    # A number of Python would be a constant, and each further one another graph.
    return None if value is None else tf.convert_to_tensor(value)


def _make_variable(value: Any) -> Any:
    return value if value is None or isinstance(value, tf.Variable) else tf.Variable(value)


def compiles_by_shape() -> bool:
    """Whether `compile_with_state` takes its time anew for each shape of a prompt."""
    return True


def run_unrecorded(function: Callable[..., Any], *tensors: Any) -> Any:
    """Returns the tensor that a function makes of tensors."""
    return function(*tensors)


def write_slots(tensor: Any, start: Any, update: Any) -> Any:
    """Returns a tensor `(batch_size, slots, ...)` with an update in its slots from `start` on."""
    if isinstance(tensor, tf.Variable):
        tensor[:, start : start + tf.shape(update)[1]].assign(update)
        # Or each read from now on would copy all of it. What still has it when slots are written
        # again keeps a copy.
        tf.raw_ops.DisableCopyOnRead(resource=tensor.handle)
        return tensor
    return ops.slice_update(tensor, [0, start, *[0] * (len(update.shape) - 2)], update)

"""Compiled models and decoding steps on TensorFlow."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.call_context import without_gradients
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.layers import without_new_nodes
from keras_deepseek.backend.protocols.inference import CompiledStep, Inference

_NEGATIVE_SIZE_MESSAGES = (
    "Negative dimension size",
    "size would be zero or negative",
    "size would be negative",  # Keras 3.13.
)


class TensorFlowInference(Inference):
    """Implements `Inference` by TensorFlow."""

    def compile_inference(
        self, model: NamedModel, find_obstacle: Callable[[], str | None] | None = None
    ) -> InferenceFunction:
        def trace(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            with without_gradients():
                return model.trace(inputs)

        if find_obstacle is not None and find_obstacle() is not None:
            # Code of users may look at sizes, so it gets those that Keras's `predict` gives it.
            traced = tf.function(trace, autograph=False, reduce_retracing=True)
        else:  # Traced once for all batch sizes and free axes.
            specs = {
                spec.name: tf.TensorSpec(spec.shape, spec.dtype, name=spec.name)
                for spec in model.signature.inputs
            }
            function = tf.function(trace, input_signature=[specs], autograph=False)
            traced = function.get_concrete_function()

        def infer(inputs: dict[str, Array]) -> dict[str, Array]:
            tensors = {name: tf.convert_to_tensor(array) for name, array in inputs.items()}
            return {name: tensor.numpy() for name, tensor in traced(tensors).items()}

        return infer

    def plain_inference(self, model: NamedModel) -> InferenceFunction:
        def infer(inputs: dict[str, Array]) -> dict[str, Array]:
            _refuse_negative_sizes(model, inputs)
            # Without a graph of free sizes, in which layers such as `TimeDistributed` compute
            # differently.
            tensors = {name: tf.convert_to_tensor(array) for name, array in inputs.items()}
            return {name: tensor.numpy() for name, tensor in model(tensors).items()}

        return infer

    def compile_with_state(
        self,
        function: Callable[..., tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        model: keras.Model | None = None,
    ) -> CompiledStep:
        @tf.function(autograph=False)
        def begin(inputs: tuple[Any, ...]) -> tuple[Any, Any]:
            with without_gradients():
                return function(None, *inputs)

        # The state is held in TensorFlow variables, which can be written by slots. A tensor would
        # be copied.
        @tf.function(autograph=False)
        def go_on(state: Any, inputs: tuple[Any, ...]) -> Any:
            with without_gradients():
                outputs, new = function(state, *inputs)
            for variable, tensor in zip(_flatten(state), _flatten(new), strict=True):
                if tensor is not variable:
                    variable.assign(tensor)
            return outputs

        def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
            tensors = keras.tree.map_structure(_make_tensor, inputs)
            if state is None:
                outputs: tuple[Any, Any] = begin(tensors)
                return outputs
            state = keras.tree.map_structure(_make_variable, state)
            return go_on(state, tensors), state

        functions = (begin, go_on)
        return CompiledStep(
            step, lambda: sum(f.experimental_get_tracing_count() for f in functions)
        )

    def write_slots(self, tensor: Any, start: Any, update: Any) -> Any:
        if not isinstance(tensor, tf.Variable):
            return super().write_slots(tensor, start, update)
        tensor[:, start : start + tf.shape(update)[1]].assign(update)
        return _read_without_copy(tensor)

    def write_slots_by_row(self, tensor: Any, starts: Any, update: Any) -> Any:
        batch_size, length = tf.unstack(tf.shape(update)[:2])
        rows = tf.repeat(tf.range(batch_size)[:, None], length, axis=1)
        indices = tf.stack([rows, starts[:, None] + tf.range(length)], axis=-1)
        if not isinstance(tensor, tf.Variable):
            return tf.tensor_scatter_nd_update(tensor, indices, update)
        tensor.scatter_nd_update(indices, update)
        return _read_without_copy(tensor)

    def map_rows(
        self, function: Callable[[Any], Any], rows: tuple[Any, ...], dtypes: tuple[str, ...]
    ) -> Any:
        tensors = tuple(map(tf.convert_to_tensor, rows))
        return tf.map_fn(function, tensors, fn_output_signature=tuple(map(tf.as_dtype, dtypes)))

    def write_row(self, tensor: Any, row: Any, update: Any) -> Any:
        if not isinstance(tensor, tf.Variable):
            return super().write_row(tensor, row, update)
        tensor[row : row + 1, : update.shape[1]].assign(update)
        return _read_without_copy(tensor)


def _refuse_negative_sizes(model: NamedModel, inputs: dict[str, Array]) -> None:
    """Raises an error if a convolution or pooling window is wider than its input.

    TensorFlow returns arbitrary numbers there.
    """
    symbols = {name: keras.KerasTensor(array.shape, array.dtype) for name, array in inputs.items()}
    try:
        with without_new_nodes(model.model):
            model(symbols)
    except Exception as error:
        if any(words in str(error) for words in _NEGATIVE_SIZE_MESSAGES):
            raise


def _read_without_copy(variable: Any) -> Any:
    """Returns a variable whose reads copy nothing from now on.

    Tensors that were read before the next write keep a copy.
    """
    tf.raw_ops.DisableCopyOnRead(resource=variable.handle)
    return variable


def _flatten(state: Any) -> list[Any]:
    flat: list[Any] = keras.tree.flatten(state)
    return flat


def _make_tensor(value: Any) -> Any:
    """Converts a value to a tensor, since each new Python number would cause a new trace."""
    return None if value is None else tf.convert_to_tensor(value)


def _make_variable(value: Any) -> Any:
    """Converts a tensor to a TensorFlow variable; returns variables and `None` unchanged."""
    return value if value is None or isinstance(value, tf.Variable) else tf.Variable(value)

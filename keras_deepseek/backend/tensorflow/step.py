"""One step of training on TensorFlow."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.datasets import from_scipy, tensorflow_specs
from keras_deepseek.backend.keras_private.layer_calls import recomputed_call
from keras_deepseek.backend.profiling.step_trace import Line
from keras_deepseek.backend.protocols.step import Step
from keras_deepseek.backend.tensor_values import multiply_gradients
from keras_deepseek.backend.tensorflow import profiling
from keras_deepseek.backend.tensorflow.array_batches import (
    ArrayEvaluation,
    ArrayPasses,
    ArrayStep,
    is_in_use,
)
from keras_deepseek.backend.tensorflow.distribution import translate_peer_errors


class TensorFlowStep(Step):
    """Implements `Step` by TensorFlow."""

    def differentiate(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
    ) -> tuple[Any, Callable[..., list[Any]]]:
        sources = [variable.value for variable in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            scalar, aux = compute()

        def backward(
            factor: Any = None, receive: Callable[[int, Any], None] | None = None
        ) -> list[Any]:
            upstream = None if factor is None else tf.cast(factor, scalar.dtype)
            gradients: list[Any] = tape.gradient(scalar, sources, upstream)
            return gradients

        return aux, backward

    def count_kept_bytes(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
        batch: Any,
    ) -> int:
        forward: set[str] = set()

        def compute_and_look() -> tuple[Any, Any]:
            result = compute()
            forward.update(
                operation.name for operation in tf.compat.v1.get_default_graph().get_operations()
            )
            return result

        @tf.function(autograph=False)
        def run() -> Any:
            _, backward = self.differentiate(compute_and_look, variables, states)
            return backward()

        operations = run.get_concrete_function().graph.get_operations()
        saved = {
            tensor.ref(): tensor
            for operation in operations
            if operation.name not in forward
            for tensor in operation.inputs
            if tensor.op.name in forward and _is_computed(tensor.op)
        }
        return sum(map(_count_bytes, saved.values()))

    def rematerialize(
        self, layer: keras.Layer, call: Callable[..., Any], states: Sequence[keras.Variable]
    ) -> Callable[..., Any]:
        def run(compute: Callable[..., Any], floats: Sequence[Any]) -> Any:
            def compute_in_scope(*floats: Any) -> Any:
                with tf.name_scope(layer.name):
                    pass  # Keras enters the scope of a layer twice too: see `LayerScopes`.
                with tf.name_scope(layer.name):
                    return compute(*floats)

            return tf.recompute_grad(compute_in_scope)(*floats)

        return recomputed_call(layer, call, states, run)

    def densify(self, gradient: Any) -> Any:
        return tf.convert_to_tensor(gradient)  # Keras's `convert_to_tensor` would leave it sparse.

    def find_finite(self, tensors: Sequence[Any]) -> list[bool]:
        # All are started before the first is awaited.
        flags = [tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors]
        return [bool(is_finite) for is_finite in flags]

    def apply_update(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[Any],
        variables: Sequence[keras.Variable],
        factor: Any = None,
    ) -> None:
        # For a sparse gradient, Keras would square rows before adding those of equal index.
        dense = [None if gradient is None else self.densify(gradient) for gradient in gradients]
        optimizer.apply(multiply_gradients(dense, factor), variables)

    def build_by_step(self, model: keras.Model, batch: Any) -> None:
        function = tf.function(functools.partial(type(model).train_step, model))
        function.get_concrete_function(tensorflow_specs(batch))

    def make_train_function(
        self, model: keras.Model, carried: Callable[[], Sequence[keras.Variable]], *, force: bool
    ) -> Callable[..., Any]:
        type(model).make_train_function(model, force=force)
        train_function = ArrayStep(model, model.train_step, model.train_function)

        def run(iterator: Any) -> Any:
            with translate_peer_errors("make a step"):
                return train_function(iterator)

        return run

    def run_step(self, model: keras.Model, batch: Any) -> dict[str, Any]:
        return dict(model.train_function(iter([batch])))

    def run_before_step(
        self, model: keras.Model, train_step: Callable[..., Any], prepare: Callable[[], None]
    ) -> Callable[..., Any] | None:
        def run(data: Any) -> Any:
            prepare()
            return train_step(data)

        return run

    def is_end_of_data(self, error: Exception) -> bool:
        return isinstance(error, StopIteration | tf.errors.OutOfRangeError)

    def feed_batches(self, make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
        def generate() -> Iterator[Any]:
            for batch in make_batches():
                yield keras.tree.map_structure(_to_tensor, keras.tree.lists_to_tuples(batch))

        # The specs leave the number of rows free, so that the step is traced once. A step that is
        # traced for another number of rows may round differently.
        dataset = tf.data.Dataset.from_generator(
            generate, output_signature=tensorflow_specs(keras.tree.lists_to_tuples(specs))
        )
        # No prefetching: after a step, exactly the requested batches were drawn.
        options = tf.data.Options()
        options.autotune.enabled = False
        options.experimental_optimization.inject_prefetch = False
        fed: Iterable[Any] = dataset.with_options(options)
        return fed

    def recorded_evaluation(
        self, model: keras.Model, find_obstacle: Callable[[str], str | None]
    ) -> Callable[[], AbstractContextManager[None]]:
        return ArrayEvaluation(model).in_use

    def can_feed_arrays(self, model: keras.Model, method: str, shuffle: bool | str) -> bool:
        is_eager = model.run_eagerly or tf.config.functions_run_eagerly()
        has_strategy = model.distribute_strategy is not tf.distribute.get_strategy()
        # With an accelerator, a pipeline copies the next batches to it while a step runs.
        return (
            shuffle != "batch"
            and not (is_eager or has_strategy or tf.distribute.has_strategy())
            and (method != "evaluate" or is_in_use(model))
            and all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
        )

    def feed_arrays(self, feed: Any) -> Iterable[Any]:
        return ArrayPasses(feed)

    def mark(self, name: str) -> AbstractContextManager[object]:
        scope: AbstractContextManager[object] = tf.name_scope(name)
        return scope

    def annotate(self, name: str) -> AbstractContextManager[object]:
        annotation: AbstractContextManager[object] = tf.profiler.experimental.Trace(name)
        return annotation

    def trace_steps(self, model: keras.Model, lines: list[Line]) -> AbstractContextManager[object]:
        return profiling.trace_steps(model, lines)

    def read_framework_random_state(self) -> dict[str, Array]:
        # The state of `tf.random` operations without a generator can't be read. Keras uses none of
        # them.
        return {"generator": tf.random.get_global_generator().state.numpy().copy()}

    def write_framework_random_state(self, state: dict[str, Array]) -> None:
        tf.random.get_global_generator().state.assign(state["generator"])


def _is_computed(operation: Any) -> bool:
    """Returns True if an operation computes its output instead of reading a stored value."""
    return operation.type not in ("Const", "Placeholder", "ReadVariableOp")


def _count_bytes(tensor: Any) -> int:
    """Returns the bytes of a tensor, or of a tensor list that a loop fills."""
    if tensor.dtype == tf.resource:
        return 0
    if tensor.dtype == tf.variant:
        return _count_list_of_loop(tensor)
    return int(math.prod(size or 0 for size in tensor.shape.as_list()) * tensor.dtype.size)


def _count_list_of_loop(tensor: Any) -> int:
    """Returns the size in bytes of a TensorFlow list to which each loop iteration adds a tensor."""
    loop = tensor.op
    if loop.type not in ("While", "StatelessWhile"):
        return 0
    body = loop.graph._get_function(loop.get_attr("body").name).graph  # noqa: SLF001
    added = body.outputs[tensor.value_index].op
    if added.type not in ("TensorListPushBack", "TensorListSetItem"):
        return 0
    return _count_rounds(loop) * _count_bytes(added.inputs[-1])


def _count_rounds(loop: Any) -> int:
    """Returns the highest number of iterations of a loop, or 1 if it depends on the data."""
    most = loop.inputs[1]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        definition = loop.graph.as_graph_def()
        (again,) = tf.graph_util.import_graph_def(definition, return_elements=[most.name])
        try:
            return max(int(session.run(again)), 1)
        except tf.errors.InvalidArgumentError:  # It depends on the data.
            return 1


def _to_tensor(value: Any) -> Any:
    """Converts an array of a batch to the form that a `tf.data` generator yields."""
    return tf.experimental.Optional.empty(None) if value is None else from_scipy(value)

"""Operations on tensors, loops and values of variables on TensorFlow."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager.record import could_possibly_record
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.call_context import is_gradient_free, known_size
from keras_deepseek.backend.data.array_pieces import allocate_aligned, read_pieces
from keras_deepseek.backend.keras_private.variables import NestedScope, scoped_values
from keras_deepseek.backend.protocols.compute import Compute

_MOST_EXACT_ROWS = 1024
"""The most products of two int8 numbers whose sum is exact in float32."""
_FEW_INT8_ROWS, _LARGE_INT8_KERNEL = 4, 2**18
"""The most rows, and the fewest elements of a kernel, for which smaller blocks are faster."""
_CACHED_INT8_ROWS = 128
"""The rows of a kernel that are then converted at once: they stay in the cache."""


class TensorFlowCompute(Compute):
    """Implements `Compute` by TensorFlow."""

    def count_flops(self, function: Callable[..., Any], *args: Any) -> int:
        # TensorFlow's own profiler omits `Einsum`, and with it attention.
        return _count(tf.function(function).get_concrete_function(*args).graph)

    def compute_gradients(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> tuple[list[Array], list[Array]]:
        tensors = [tf.convert_to_tensor(array) for array in inputs]
        sources = [*tensors, *(variable.value for variable in variables)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            result = function(*tensors)
        gradients = tape.gradient(
            result, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        # The gradient of an embedding table is sparse until it is converted.
        arrays = [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]
        return arrays[: len(tensors)], arrays[len(tensors) :]

    def apply_with_gradient(
        self,
        function: Callable[..., Any],
        gradient: Callable[..., Sequence[Any]],
        tensors: Sequence[Any],
        constants: Sequence[Any],
    ) -> Any:
        @tf.custom_gradient
        def run(*arguments: Any) -> Any:
            def differentiate(upstream: Any) -> list[Any]:
                return [*gradient(upstream, *arguments), *(None for _ in constants)]

            # Otherwise an eager tape would keep all that is computed here.
            return function(*(tf.stop_gradient(argument) for argument in arguments)), differentiate

        return run(*tensors, *constants)

    def outside_compilation(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = tf.init_scope()
        return context

    def compile_function(
        self,
        function: Callable[..., Sequence[Any]],
        variables: Sequence[keras.Variable],
        *,
        uses_xla: bool,
        has_gradients: bool,
    ) -> Callable[..., Sequence[Any]]:
        compiled: Callable[..., Sequence[Any]] = tf.function(
            function, jit_compile=uses_xla, autograph=False
        )
        return compiled

    def multiply_int8(self, rows: Any, kernel: Any) -> Any:
        num_rows = known_size(rows.shape[0])
        is_few = num_rows is not None and num_rows <= _FEW_INT8_ROWS
        if is_few and kernel.shape.num_elements() < _LARGE_INT8_KERNEL:
            return tf.matmul(rows, kernel, output_type="int32")
        # Floating-point sums of integers are exact up to 2^24.
        block = _CACHED_INT8_ROWS if is_few else _MOST_EXACT_ROWS
        rows = tf.cast(rows, "float32")
        products = [
            tf.cast(rows[:, i : i + block] @ tf.cast(kernel[i : i + block], "float32"), "int32")
            for i in range(0, kernel.shape[0], block)
        ]
        return tf.add_n(products)

    def top_k(self, values: Any, k: int) -> tuple[Any, Any]:
        largest, indices = keras.ops.top_k(values, k)
        return largest, keras.ops.cast(indices, "int32")

    def read_integer(self, value: Any) -> int | None:
        return None if self.is_traced(value) else int(value)

    def is_traced(self, value: Any) -> bool:
        return isinstance(value, tf.Tensor) and bool(tf.is_symbolic_tensor(value))

    def read_array(self, value: Any) -> Array | None:
        is_here = self.can_read_shapes(value) and "CPU" in value.device
        return value.numpy() if is_here else None

    def can_read_shapes(self, value: Any) -> bool:
        return isinstance(value, tf.Tensor) and not self.is_traced(value)

    def has_free_shapes(self, value: Any) -> bool:
        if self.can_read_shapes(value):
            return True
        # Programs that are exported have neither of both.
        is_here = is_gradient_free() or could_possibly_record()
        is_compiled = GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
        return is_here and not is_compiled and not tf.config.list_physical_devices("GPU")

    def reads_in_place(self, index: Any) -> bool:
        return self.loops_over_blocks()

    def repeat(
        self,
        body: Callable[..., Sequence[Any]],
        times: Any,
        state: Sequence[Any],
        variables: Sequence[keras.Variable] = (),
    ) -> tuple[Any, ...]:
        number = len(state)
        # In a stateless scope TensorFlow does not carry the values of variables between iterations.
        carried = [variable for variable, _ in scoped_values(variables)]

        def run(index: Any, *values: Any) -> tuple[Any, ...]:
            if not carried:
                return index + 1, *body(index, *values)
            with NestedScope(zip(carried, values[number:], strict=True)) as scope:
                outputs = body(index, *values[:number])
            return index + 1, *outputs, *map(scope.get_current_value, carried)

        _, *final = tf.while_loop(
            lambda index, *_: index < times,
            run,
            (tf.constant(0), *state, *(variable.value for variable in carried)),
            # TensorFlow would run ten iterations at once, and hold the memory of ten.
            parallel_iterations=1,
        )
        for variable, value in zip(carried, final[number:], strict=True):
            variable.assign(value)
        return tuple(final[:number])

    def loops_over_blocks(self) -> bool:
        return is_gradient_free() and not tf.config.list_physical_devices("GPU")

    def stack(self, function: Callable[[Any], Any], num_results: Any, num_rows: Any) -> Any:
        spec = tf.function(function, autograph=False).get_concrete_function(0).structured_outputs
        array = tf.TensorArray(spec.dtype, num_rows, element_shape=spec.shape)
        _, array = tf.while_loop(
            lambda index, _: index < num_results,
            lambda index, array: (index + 1, array.write(index, function(index))),
            (tf.constant(0), array),
            parallel_iterations=1,
        )
        return array.stack()

    def run_if(
        self, condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        def run() -> tf.Tensor:
            function()
            return tf.constant(0)  # Both branches must return the same structure.

        tf.cond(condition, run, lambda: tf.constant(0))

    def assign_array(self, variable: keras.Variable, source: Any) -> None:
        # The pieces are assigned as a whole: TensorFlow copies a variable that was written by
        # slices whenever it is read.
        dtype = np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype)
        # The variable uses this memory until its first update, which copies it.
        variable.assign(_as_tensor(read_pieces(source, dtype)))

    def unset_initializer(self) -> Any:
        # TensorFlow's own zeros would take memory, which its allocator keeps. These take no memory
        # until they are written.
        return _make_untouched_zeros


def _count(graph: Any) -> int:
    return sum(_count_operation(operation, graph) for operation in graph.get_operations())


def _count_operation(operation: Any, graph: Any) -> int:
    kind = operation.type
    if kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        transposed = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        summed = _shape(operation.inputs[0])[-2 if transposed else -1]
        return 2 * math.prod(_shape(operation.outputs[0])) * summed
    if kind == "Einsum":
        return _count_einsum(operation)
    if kind in ("Conv2D", "Conv3D", "DepthwiseConv2dNative"):
        kernel = _shape(operation.inputs[1])
        weights = math.prod(kernel[:-2] if kind.startswith("Depthwise") else kernel[:-1])
        return 2 * math.prod(_shape(operation.outputs[0])) * weights
    # The iterations of a loop are unknown, so its body counts once.
    return sum(_count(inner) for inner in _inner(operation, graph))


def _count_einsum(operation: Any) -> int:
    equation = operation.get_attr("equation").decode()
    sizes: dict[str, int] = {}
    for labels, tensor in zip(equation.split("->")[0].split(","), operation.inputs, strict=True):
        leading, ellipsis, trailing = labels.partition("...")
        shape = _shape(tensor)
        sizes.update(zip(leading, shape, strict=False))
        if trailing:
            sizes.update(zip(trailing, shape[-len(trailing) :], strict=True))
        if ellipsis:
            ellipsis_shape = shape[len(leading) : len(shape) - len(trailing)]
            sizes["..."] = max(math.prod(ellipsis_shape), sizes.get("...", 1))
    # With one input it only moves or sums numbers.
    return (2 if len(operation.inputs) > 1 else 0) * math.prod(sizes.values())


def _inner(operation: Any, graph: Any) -> list[Any]:
    """Returns the graphs inside an operation, such as the body of a loop."""
    attributes = [operation.get_attr(name) for name in operation.node_def.attr]
    names = [value.name for value in attributes if isinstance(value, tf.compat.v1.NameAttrList)]
    return [graph._get_function(name).graph for name in names]  # noqa: SLF001


def _shape(tensor: Any) -> list[int]:
    """Returns a tensor's shape as a tuple, with 0 for unknown sizes."""
    return [size or 0 for size in tensor.shape.as_list()]


def _make_untouched_zeros(shape: Any, dtype: Any = None) -> tf.Tensor:
    """Returns a tensor of zeros for which the system has not provided memory yet."""
    return _as_tensor(allocate_aligned(tuple(shape), np.dtype(tf.as_dtype(dtype).as_numpy_dtype)))


def _as_tensor(values: Array) -> tf.Tensor:
    """Returns a tensor that shares the memory of an array."""
    if values.dtype.name != "bfloat16":  # NumPy knows no other package's dtypes.
        return tf.experimental.dlpack.from_dlpack(values.__dlpack__())
    numbers = tf.experimental.dlpack.from_dlpack(values.view("int16").__dlpack__())
    return tf.bitcast(numbers, tf.bfloat16)

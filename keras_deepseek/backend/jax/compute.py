"""Operations on tensors, loops and values of variables on JAX."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.call_context import is_gradient_free, known_size
from keras_deepseek.backend.data.array_pieces import allocate_aligned, read_pieces
from keras_deepseek.backend.keras_private.variables import NestedScope
from keras_deepseek.backend.protocols.compute import Compute

_LEAST_INT8_ROWS = 4


class JaxCompute(Compute):
    """Implements `Compute` by JAX."""

    def count_flops(self, function: Callable[..., Any], *args: Any) -> int:
        # XLA's own analysis counts the body of a loop only once.
        return _count(jax.make_jaxpr(function)(*args).jaxpr)

    def compute_gradients(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> tuple[list[Array], list[Array]]:
        def run(tensors: list[jax.Array], values: list[jax.Array]) -> jax.Array:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                result: jax.Array = function(*tensors)
            return result

        tensors = [keras.ops.convert_to_tensor(array) for array in inputs]
        values = [variable.value for variable in variables]
        # Without `jit`, JAX would compile each operation of the gradient separately.
        by_input, by_variable = jax.jit(jax.grad(run, argnums=(0, 1)))(tensors, values)
        return [np.asarray(array) for array in by_input], [
            np.asarray(array) for array in by_variable
        ]

    def apply_with_gradient(
        self,
        function: Callable[..., Any],
        gradient: Callable[..., Sequence[Any]],
        tensors: Sequence[Any],
        constants: Sequence[Any],
    ) -> Any:
        @jax.custom_vjp
        def run(tensors: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
            return function(*tensors, *constants)

        def run_forward(tensors: Any, constants: Any) -> Any:
            return function(*tensors, *constants), (tensors, constants)

        def run_backward(arguments: Any, upstream: Any) -> Any:
            tensors, constants = arguments
            return tuple(gradient(upstream, *tensors, *constants)), None

        run.defvjp(run_forward, run_backward)
        return run(tuple(tensors), tuple(constants))

    def outside_compilation(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = jax.ensure_compile_time_eval()
        return context

    def compile_for_one_call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # Operation by operation, JAX would compile each of them.
        options = {"xla_backend_optimization_level": 0}
        compiled: Callable[..., Any] = jax.jit(function, compiler_options=options)
        return compiled

    def compile_function(
        self,
        function: Callable[..., Sequence[Any]],
        variables: Sequence[keras.Variable],
        *,
        uses_xla: bool,
        has_gradients: bool,
    ) -> Callable[..., Sequence[Any]]:
        @jax.jit
        def run(values: list[jax.Array], *tensors: jax.Array) -> Sequence[Any]:
            with NestedScope(zip(variables, values, strict=True)):
                return function(*tensors)

        return lambda *tensors: run([variable.value for variable in variables], *tensors)

    def multiply_int8(self, rows: Any, kernel: Any) -> Any:
        # On a CPU, XLA has no fast product for fewer rows.
        num_rows = known_size(rows.shape[0]) or _LEAST_INT8_ROWS
        if num_rows < _LEAST_INT8_ROWS:
            rows = jnp.pad(rows, ((0, _LEAST_INT8_ROWS - num_rows), (0, 0)))
            return jnp.matmul(rows, kernel, preferred_element_type="int32")[:num_rows]
        return jnp.matmul(rows, kernel, preferred_element_type="int32")

    def top_k(self, values: Any, k: int) -> tuple[Any, Any]:
        # JAX sorts negative zero below zero.
        indices = jax.lax.top_k(jnp.where(values == 0, 0, values), k)[1]
        return jnp.take_along_axis(values, indices, axis=-1), indices

    def read_integer(self, value: Any) -> int | None:
        return None if self.is_traced(value) else int(value)

    def is_traced(self, value: Any) -> bool:
        return isinstance(value, jax.core.Tracer)

    def read_array(self, value: Any) -> Array | None:
        if not isinstance(value, jax.Array) or self.is_traced(value):
            return None
        is_here = all(device.platform == "cpu" for device in value.devices())
        return np.asarray(value) if is_here and value.is_fully_addressable else None

    def can_read_shapes(self, value: Any) -> bool:
        return False  # JAX compiles each operation for each shape, also outside of jit.

    def repeat(
        self,
        body: Callable[..., Sequence[Any]],
        times: Any,
        state: Sequence[Any],
        variables: Sequence[keras.Variable] = (),
    ) -> tuple[Any, ...]:
        def run(index: Any, carried: Any) -> Any:
            state, values = carried
            with NestedScope(zip(variables, values, strict=True)) as scope:
                state = tuple(body(index, *state))
            return state, [scope.get_current_value(variable) for variable in variables]

        carried = tuple(state), [variable.value for variable in variables]
        final, values = jax.lax.fori_loop(0, times, run, carried)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return tuple(final)

    def loops_over_blocks(self) -> bool:
        return is_gradient_free() and jax.default_backend() == "cpu"

    def stack(self, function: Callable[[Any], Any], num_results: Any, num_rows: Any) -> Any:
        def put(index: Any, stacked: Any) -> Any:
            return jax.lax.dynamic_update_index_in_dim(stacked, function(index), index, 0)

        spec = jax.eval_shape(function, 0)
        zeros = jnp.zeros((num_rows, *spec.shape), spec.dtype)
        return jax.lax.fori_loop(0, num_results, put, zeros)

    def run_if(
        self, condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        values = [variable.value for variable in variables]

        def run() -> list[jax.Array]:
            with NestedScope(zip(variables, values, strict=True)) as scope:
                function()
            return [scope.get_current_value(variable) for variable in variables]

        results = jax.lax.cond(condition, run, lambda: values)
        for variable, value in zip(variables, results, strict=True):
            variable.assign(value)

    def assign_array(self, variable: keras.Variable, source: Any) -> None:
        # The old array is deleted first, so that the two are never in memory together.
        dtype, sharding = variable.value.dtype, variable.value.sharding
        variable.value.delete()
        if len(sharding.device_set) > 1:
            value = jax.make_array_from_callback(
                tuple(variable.shape), sharding, lambda index: read_pieces(source[index], dtype)
            )
        else:  # On a CPU, JAX uses this memory without a copy.
            value = jax.device_put(read_pieces(source, dtype), sharding)
        variable.assign(value)

    def unset_initializer(self) -> Any:
        # JAX would write its own zeros. These take no memory until they are written.
        return "zeros" if keras.distribution.distribution() else _make_untouched_zeros


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        summed = math.prod(int(shape[axis]) for axis in contracted)
        return 2 * int(equation.outvars[0].aval.size) * summed
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = int(kernel.shape[params["dimension_numbers"].rhs_spec[0]])
        return 2 * int(equation.outvars[0].aval.size) * int(kernel.size) // outputs
    if name == "cond":  # Only one branch runs: the most expensive one counts.
        return max(_count(branch.jaxpr) for branch in params["branches"])
    # The iterations of a `while` are unknown.
    times = int(params["length"]) if name == "scan" else 1
    return times * sum(_count(inner) for inner in _inner(params))


def _inner(params: dict[str, Any]) -> list[Any]:
    """Returns the traced programs inside an equation, such as the body of a loop."""
    values = (getattr(value, "jaxpr", value) for value in params.values())
    return [value for value in values if hasattr(value, "eqns")]


def _make_untouched_zeros(shape: Any, dtype: Any = None) -> jax.Array:
    """Returns an array of zeros for which the system has not provided memory yet."""
    return jax.device_put(allocate_aligned(tuple(shape), np.dtype(dtype)))

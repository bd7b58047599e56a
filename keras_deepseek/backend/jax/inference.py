"""Compiled models and decoding steps on JAX."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.call_context import without_gradients
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.jax.compute import JaxCompute
from keras_deepseek.backend.protocols.inference import CompiledStep, Inference


class JaxInference(Inference):
    """Implements `Inference` by JAX."""

    def compile_inference(
        self, model: NamedModel, find_obstacle: Callable[[], str | None] | None = None
    ) -> InferenceFunction:
        return _compile(model)

    def plain_inference(self, model: NamedModel) -> InferenceFunction:
        # Each batch of another shape is compiled, and few follow it.
        return _compile(model, JaxCompute().compile_for_one_call)

    def compile_with_state(
        self,
        function: Callable[..., tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        model: keras.Model | None = None,
    ) -> CompiledStep:
        variables = list(variables)

        def trace(values: list[jax.Array], state: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
            scope = keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))
            with without_gradients(), scope:
                return function(state, *inputs)

        run = jax.jit(trace, donate_argnums=1)

        def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
            # The weights are arguments, not constants, so that the next call sees a change.
            values = [variable.value for variable in variables]
            devices = values[0].devices() if values else ()
            if len(devices) == 1:
                state, inputs = jax.tree.map(partial(_commit, *devices), (state, inputs))
            outputs: tuple[Any, Any] = run(values, state, inputs)
            return outputs

        return CompiledStep(step, run._cache_size)  # noqa: SLF001

    def write_slots_by_row(self, tensor: Any, starts: Any, update: Any) -> Any:
        rows = jnp.arange(update.shape[0])[:, None]
        slots = starts[:, None] + jnp.arange(update.shape[1])
        # Without these promises XLA checks bounds, and sorts out repeated indices.
        return (
            jnp.asarray(tensor)
            .at[rows, slots]
            .set(update, mode="promise_in_bounds", unique_indices=True)
        )


def _compile(
    model: NamedModel, compile_function: Callable[..., Callable[..., Any]] = jax.jit
) -> InferenceFunction:
    variables = model.model.variables

    def run(
        values: list[jax.Array], inputs: dict[str, jax.Array]
    ) -> tuple[dict[str, jax.Array], dict[int, jax.Array]]:
        scope = keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))
        old_values = [scope.get_current_value(variable) for variable in variables]
        with without_gradients(), scope:
            outputs = model(inputs)
        new_values = map(scope.get_current_value, variables)
        pairs = enumerate(zip(old_values, new_values, strict=True))
        return outputs, {number: new for number, (old, new) in pairs if new is not old}

    compiled = compile_function(run)

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        # The weights are arguments, not constants, so that the next call sees a change.
        outputs, assigned = compiled([variable.value for variable in variables], inputs)
        for number, value in assigned.items():
            variables[number].assign(value)
        return {name: np.asarray(array) for name, array in outputs.items()}

    return infer


def _commit(device: jax.Device, value: Any) -> Any:
    """Binds an array to its device: else JAX would compile a step again for arrays that are."""
    if isinstance(value, jax.Array) and not value.committed:
        return jax.device_put(value, device)
    return value

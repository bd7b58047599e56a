"""Functions that go on from a state, compiled, and the memory that such a state has."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
from keras import ops

from keras_deepseek.backend.gradient_free import without_gradients


def compile_with_state(
    function: Callable[..., tuple[Any, Any]], variables: Sequence[keras.Variable]
) -> Callable[..., tuple[Any, Any]]:
    """Returns `function(state, *inputs)`, which makes outputs and the next state, compiled."""
    variables = list(variables)

    def trace(values: list[jax.Array], state: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        scope = keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True)))
        with without_gradients(), scope:
            return function(state, *inputs)

    run = jax.jit(trace, donate_argnums=1)

    def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
        # The weights are arguments, not constants: a change of them is seen by the next call.
        outputs: tuple[Any, Any] = run([variable.value for variable in variables], state, inputs)
        return outputs

    return step


def compiles_by_shape() -> bool:
    """Whether `compile_with_state` takes its time anew for each shape of a prompt."""
    return True


def run_unrecorded(function: Callable[..., Any], *tensors: Any) -> Any:
    """Returns the tensor that a function makes of tensors."""
    return function(*tensors)


def write_slots(tensor: Any, start: Any, update: Any) -> Any:
    """Returns a tensor `(batch_size, slots, ...)` with an update in its slots from `start` on."""
    return ops.slice_update(tensor, [0, start, *[0] * (len(update.shape) - 2)], update)

"""Memory on JAX: what a step keeps of it, and that it ran out."""

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
from jax.extend.core import Literal

from keras_deepseek.backend.keras_private.keras_training import NestedScope


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory of a device, or the machine's, ran out."""
    # A step that was dispatched already says INTERNAL, and the rest in words.
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError)
        and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text)
    )


def release_memory() -> None:
    """Gives back the memory that nothing uses and that the framework holds in reserve."""
    gc.collect()  # JAX gives back what no array holds.


def count_kept_bytes(
    compute: Callable[[], tuple[Any, Any]],
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
    batch: Any,
) -> int:
    """Returns the bytes that `differentiate` keeps from its forward for its backward pass."""
    own = [(state, state.value) for state in states]

    def run(values: list[jax.Array]) -> Any:
        with NestedScope([*zip(variables, values, strict=True), *own]):
            return compute()

    def make_backward(values: list[jax.Array]) -> Any:
        _, backward, _ = jax.vjp(run, values, has_aux=True)
        return jax.tree_util.tree_leaves(backward)

    jaxpr = jax.make_jaxpr(make_backward)([variable.value for variable in variables]).jaxpr
    there = {*jaxpr.invars, *jaxpr.constvars}
    are_computed = _depend(jaxpr, [True for _ in jaxpr.invars])
    kept = {
        each
        for each, is_computed in zip(jaxpr.outvars, are_computed, strict=True)
        if is_computed and each not in there
    }
    return sum(math.prod(each.aval.shape) * each.aval.dtype.itemsize for each in kept)


def _depend(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """Returns which outputs depend on inputs that count, or on arrays from outside.

    The others are constants, which XLA computes where they are used.
    """
    found = {each for each, counts in zip(jaxpr.invars, inputs, strict=True) if counts}
    found.update(jaxpr.constvars)

    def depends(each: Any) -> bool:
        return not isinstance(each, Literal) and each in found

    for equation in jaxpr.eqns:
        given = [depends(each) for each in equation.invars]
        outputs = [any(given)] * len(equation.outvars)
        if equation.primitive.name in ("jit", "pjit"):
            inner = equation.params["jaxpr"].jaxpr
            outputs = _depend(inner, given)
        found.update(each for each, counts in zip(equation.outvars, outputs, strict=True) if counts)
    return [depends(each) for each in jaxpr.outvars]

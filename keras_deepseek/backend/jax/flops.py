"""What a computation costs, counted on JAX."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Returns the floating-point operations of `function(*args)`, a multiply-add as two."""
    # XLA's own analysis counts the body of a loop once, however often it runs.
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


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
    if name == "cond":  # One of its branches runs: the dearest counts.
        return max(_count(branch.jaxpr) for branch in params["branches"])
    times = int(params["length"]) if name == "scan" else 1  # How often a `while` runs is not known.
    return times * sum(_count(inner) for inner in _inner(params))


def _inner(params: dict[str, Any]) -> list[Any]:
    values = (getattr(value, "jaxpr", value) for value in params.values())
    return [value for value in values if hasattr(value, "eqns")]

"""What jax2onnx has to be told: functions of JAX's that it writes wrongly."""

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax


@contextlib.contextmanager
def functions_in_parts() -> Iterator[None]:
    """Traces functions of `jax.nn` as others than those that jax2onnx puts for them."""
    module = jax.nn
    kept = module.log_sigmoid, module.one_hot
    one_hot = module.one_hot

    def one_hot_of_what_is_not_below(x: Any, num_classes: int, **options: Any) -> Any:
        """Puts a class beyond all for one below zero, which ONNX counts from the end."""
        indices = jax.numpy.where(x < 0, num_classes, x)
        return one_hot(indices, num_classes, **options)

    module.log_sigmoid, module.one_hot = log_sigmoid, one_hot_of_what_is_not_below
    try:
        yield
    finally:
        module.log_sigmoid, module.one_hot = kept


@contextlib.contextmanager
def primitives_in_parts() -> Iterator[None]:
    """Has jax2onnx write primitives by formulas that keep what is small."""
    system: Any = importlib.import_module("jax2onnx.plugins.plugin_system")
    system.import_all_plugins()
    registry: dict[str, Any] = system.PLUGIN_REGISTRY
    kept = {name: registry[name] for name in _FORMULAS if name in registry}
    registry.update({name: _InParts(formula, registry) for name, formula in _FORMULAS.items()})
    try:
        yield
    finally:
        for name in _FORMULAS:
            del registry[name]
        registry.update(kept)


class _InParts:
    """A plugin of jax2onnx's that writes a primitive as a formula compiled by itself."""

    def __init__(self, formula: Callable[[Any], Any], registry: dict[str, Any]) -> None:
        self._formula = formula
        self._compiled = registry[jax.make_jaxpr(jax.jit(formula))(0.0).eqns[0].primitive.name]

    def lower(self, context: Any, equation: Any) -> None:
        """Writes the parts where the primitive stands."""
        given = equation.invars[0].aval
        traced = jax.make_jaxpr(self._formula)(jax.ShapeDtypeStruct(given.shape, given.dtype))
        self._compiled.lower(
            context,
            types.SimpleNamespace(
                params={"jaxpr": traced}, invars=equation.invars[:1], outvars=equation.outvars
            ),
        )


def expm1(x: Any) -> Any:
    """Returns `exp(x) - 1` as `tanh(x / 2) (exp(x) + 1)`, which keeps what is small."""
    return jax.lax.tanh(x * 0.5) * (jax.lax.exp(x) + 1)


def log1p(x: Any) -> Any:
    """Returns `log(1 + x)`, of what is small as `log(u) x / (u - 1)` of `u = 1 + x`.

    What is left of `x` in `u` stands in both: the error of the one is that of the other.
    """
    following = x + 1
    logarithm = jax.lax.log(following)
    kept = following - 1
    small = jax.numpy.where(kept == 0, x, logarithm * (x / kept))
    return jax.numpy.where(jax.lax.abs(x) < _SMALL, small, logarithm)


def log_sigmoid(x: Any) -> Any:
    """Returns `min(x, 0) - log1p(exp(-|x|))`: of jax2onnx's `log(sigmoid(x))` nothing is left."""
    negative = jax.lax.min(x, jax.lax.full_like(x, 0))
    return negative - jax.lax.log1p(jax.lax.exp(-jax.lax.abs(x)))


_SMALL = 0.5

_FORMULAS: dict[str, Callable[[Any], Any]] = {
    "expm1": expm1,
    "jax.numpy.expm1": expm1,
    "log1p": log1p,
}

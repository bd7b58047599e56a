"""One step of training on JAX."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Literal

from keras_deepseek.backend.call_context import collect_loss_means, set_loss_normalizer
from keras_deepseek.backend.data.batch_stream import Epochs
from keras_deepseek.backend.jax import profiling
from keras_deepseek.backend.jax.distribution import (
    GATHERED,
    place_batch,
    translate_peer_errors,
    weight_gatherer,
)
from keras_deepseek.backend.keras_private.datasets import from_scipy
from keras_deepseek.backend.keras_private.masks import split_floats
from keras_deepseek.backend.keras_private.trainers import (
    hold_state,
    read_state,
    trace_train_step,
    untracked_state,
    with_further_shardings,
)
from keras_deepseek.backend.keras_private.variables import NestedScope, raw_value, set_raw_value
from keras_deepseek.backend.profiling.step_trace import DATA_WAIT, Line
from keras_deepseek.backend.protocols.step import Step


class JaxStep(Step):
    """Implements `Step` by JAX."""

    def __init__(self) -> None:
        self._running: tuple[keras.Model, Any] | None = None  # With the state of its step.

    def differentiate(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
    ) -> tuple[Any, Callable[..., list[Any]]]:
        state_values = [(state, state.value) for state in states]
        dependences: list[bool] = []  # Filled as `run` is differentiated.
        gather = weight_gatherer([*variables, *states])

        def run_forward(values: list[jax.Array]) -> tuple[jax.Array, Any]:
            mapping = [*zip(variables, values, strict=True), *state_values]
            with NestedScope(mapping, gather) as scope:
                scalar, aux = compute()
            return scalar, (aux, [scope.state_mapping[id(state)] for state in states])

        if gather is not None:  # The backward pass gathers weights again.
            policy = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
            run_forward = jax.checkpoint(run_forward, policy=policy)

        def run(values: list[jax.Array]) -> tuple[jax.Array, Any]:
            scalar, aux = run_forward(values)
            return _detect_dependence(scalar, dependences), aux

        scalar, pull, (aux, values) = jax.vjp(
            run, [variable.value for variable in variables], has_aux=True
        )
        for state, value in zip(states, values, strict=True):
            state.assign(value)

        def backward(
            factor: Any = None, receive: Callable[[int, Any], None] | None = None
        ) -> list[Any]:
            if not any(dependences):  # The scalar depends on no variable at all.
                return [None] * len(variables)
            upstream = jax.numpy.ones_like(scalar)
            if factor is not None:
                upstream = jax.numpy.asarray(factor, scalar.dtype)
            (gradients,) = pull(upstream)
            return list(gradients)

        return aux, backward

    def count_kept_bytes(
        self,
        compute: Callable[[], tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        states: Sequence[keras.Variable],
        batch: Any,
    ) -> int:
        state_values = [(state, state.value) for state in states]

        def run(values: list[jax.Array]) -> Any:
            with NestedScope([*zip(variables, values, strict=True), *state_values]):
                return compute()

        def make_backward(values: list[jax.Array]) -> Any:
            _, backward, _ = jax.vjp(run, values, has_aux=True)
            return jax.tree_util.tree_leaves(backward)

        jaxpr = jax.make_jaxpr(make_backward)([variable.value for variable in variables]).jaxpr
        there = {*jaxpr.invars, *jaxpr.constvars}
        are_computed = _depend(jaxpr, [True for _ in jaxpr.invars])
        saved = {
            outvar
            for outvar, is_computed in zip(jaxpr.outvars, are_computed, strict=True)
            if is_computed and outvar not in there
        }
        return sum(math.prod(outvar.aval.shape) * outvar.aval.dtype.itemsize for outvar in saved)

    def rematerialize(
        self, layer: keras.Layer, call: Callable[..., Any], states: Sequence[keras.Variable]
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            floats, put = split_floats((args, kwargs))

            def compute(floats: list[jax.Array], values: list[jax.Array]) -> Any:
                with (
                    NestedScope(zip(states, values, strict=True)) as scope,
                    collect_loss_means() as means,
                ):
                    positional, named = put(floats)
                    outputs = call(*positional, **named)
                values = [scope.get_current_value(state) for state in states]
                return outputs, values, scope.losses, means

            values = [state.value for state in states]
            outputs, values, losses, means = jax.checkpoint(compute)(floats, values)
            for state, value in zip(states, values, strict=True):
                state.assign(value)
            for loss in losses:
                layer.add_loss(loss)
            for mean in means:
                set_loss_normalizer(mean)
            return outputs

        return run

    def find_finite(self, tensors: Sequence[Any]) -> list[bool]:
        return [bool(is_finite) for is_finite in _find_finite(list(tensors))]

    def compile_update(
        self, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
    ) -> Callable[[Sequence[Any]], None]:
        states = optimizer.variables

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def run(values: Any, state_values: Any, gradients: Any) -> Any:
            mapping = [
                *zip(variables, values, strict=True),
                *zip(states, state_values, strict=True),
            ]
            with keras.StatelessScope(mapping) as scope:
                optimizer.apply(gradients, variables)
            return tuple(
                [scope.get_current_value(variable) for variable in group]
                for group in (variables, states)
            )

        def update(gradients: Sequence[Any]) -> None:
            groups = run(
                [variable.value for variable in variables],
                [variable.value for variable in states],
                list(gradients),
            )
            for group, values in zip((variables, states), groups, strict=True):
                for variable, value in zip(group, values, strict=True):
                    variable.assign(value)

        return update

    def make_train_step(
        self,
        model: keras.Model,
        step: Callable[[Any], dict[str, Any]],
        carried: Callable[[], Sequence[keras.Variable]] = list,
    ) -> Callable[..., Any]:
        # The carried variables follow the metrics in the state: see `make_train_function`.

        def train_step(state: Any, data: Any) -> Any:
            groups = (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                [*model.metrics_variables, *carried()],
            )
            mapping = [
                pair
                for variables, values in zip(groups, state, strict=True)
                for pair in zip(variables, values, strict=True)
            ]
            with keras.StatelessScope(mapping) as scope:
                logs = step(data)
            return logs, tuple(
                [scope.get_current_value(variable) for variable in variables]
                for variables in groups
            )

        return train_step

    def build_by_step(self, model: keras.Model, batch: Any) -> None:
        trace_train_step(model, batch)

    def make_train_function(
        self, model: keras.Model, carried: Callable[[], Sequence[keras.Variable]], *, force: bool
    ) -> Callable[..., Any]:
        # Between two steps, Keras holds the values of the model's variables only. So the values of
        # the carried variables travel in the state, behind those of the metrics.
        with (
            with_further_shardings(
                model, lambda: [variable.value.sharding for variable in carried()]
            )
            if carried()
            else nullcontext()
        ):
            type(model).make_train_function(model, force=force)
        train_function = model.train_function
        has_peers = jax.process_count() > 1
        peer_errors = translate_peer_errors("make a step") if has_peers else nullcontext()

        def run(state: Any, iterator: Any) -> Any:
            *model_state, metrics = state
            variables = carried()
            self._running = model, state
            try:
                with peer_errors:
                    logs, (*model_state, values) = train_function(
                        (*model_state, [*metrics, *(variable.value for variable in variables)]),
                        iterator,
                    )
            except Exception:
                # Keras has taken the values out of the variables, and restores these.
                if not any(value.is_deleted() for values in state for value in values):
                    hold_state(model, state)
                raise
            finally:
                self._running = None
            for variable, value in zip(variables, values[len(metrics) :], strict=True):
                variable.assign(value)
            return logs, (*model_state, values[: len(metrics)])

        return run

    def watch_batches(
        self, arguments: tuple[Any, ...], add: Callable[[float], None]
    ) -> tuple[Any, ...] | None:
        state, iterator = arguments
        return state, _time_batches(iterator, add)

    def run_step(self, model: keras.Model, batch: Any) -> dict[str, Any]:
        logs, state = model.train_function(read_state(model), iter([place_batch(batch)]))
        hold_state(model, state)
        model.jax_state_sync()
        return dict(logs)

    def run_before_step(
        self, model: keras.Model, train_step: Callable[..., Any], prepare: Callable[[], None]
    ) -> Callable[..., Any] | None:
        def run(state: Any, data: Any) -> Any:
            trainable, non_trainable, values, metrics = state
            variables = model.optimizer.variables
            with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
                prepare()
            values = [scope.get_current_value(variable) for variable in variables]
            return train_step((trainable, non_trainable, values, metrics), data)

        return run

    def stored_value(self, variable: keras.Variable) -> Any:
        value = raw_value(variable)
        if value is None and self._running is not None:
            model, (trainable, non_trainable, *_) = self._running
            variables = [*model.trainable_variables, *model.non_trainable_variables]
            values = zip(variables, [*trainable, *non_trainable], strict=True)
            value = next((value for owner, value in values if owner is variable), None)
        # On the default device, also where the variable is spread over several.
        return None if value is None else jnp.asarray(np.asarray(value))

    def separate_variables(self, model: keras.Model) -> None:
        value_ids: set[int] = set()
        for variable in _variables(model):
            if id(variable.value) in value_ids:
                variable.assign(keras.ops.copy(variable.value))
            value_ids.add(id(variable.value))

    def restoring_variables(self, model: keras.Model) -> AbstractContextManager[object]:
        return _restoring_variables(model)

    def mark(self, name: str) -> AbstractContextManager[object]:
        scope: AbstractContextManager[object] = jax.named_scope(name)
        return scope

    def annotate(self, name: str) -> AbstractContextManager[object]:
        annotation: AbstractContextManager[object] = jax.profiler.TraceAnnotation(name)
        return annotation

    def trace_steps(self, model: keras.Model, lines: list[Line]) -> AbstractContextManager[object]:
        return profiling.trace_steps(model, lines)

    def feed_batches(self, make_batches: Callable[[], Iterator[Any]], specs: Any) -> Iterable[Any]:
        return Epochs(make_batches, from_scipy)

    def can_feed_arrays(self, model: keras.Model, method: str, shuffle: bool | str) -> bool:
        return shuffle != "batch"

    def feed_arrays(self, feed: Any) -> Iterable[Any]:
        # As Keras: from NumPy's global generator, when the first batch is drawn.
        order = np.random.permutation(feed.num_rows) if feed.shuffles else None  # noqa: NPY002
        yield from feed.batches(order)


def _time_batches(iterator: Iterator[Any], add: Callable[[float], None]) -> Iterator[Any]:
    while True:
        started = time.perf_counter()
        try:
            with jax.profiler.TraceAnnotation(DATA_WAIT):
                batch = next(iterator)
        except StopIteration:
            return
        add(time.perf_counter() - started)
        yield batch


def _detect_dependence(scalar: Any, dependences: list[bool]) -> Any:
    """Returns a scalar whose gradient appends True to a list if it depends on the variables.

    JAX's gradients don't tell: they are zeros where nothing depends on a variable.
    """

    @jax.custom_jvp
    def run(scalar: jax.Array) -> jax.Array:
        return scalar

    def run_tangent(primals: Any, tangents: Any) -> Any:
        (primal,), (tangent,) = primals, tangents
        dependences.append(not isinstance(tangent, SymbolicZero))
        return primal, tangent

    run.defjvp(run_tangent, symbolic_zeros=True)
    return run(keras.ops.convert_to_tensor(scalar))


def _depend(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """Returns, for each output of a traced program, True if it depends on the marked inputs.

    The other outputs are constants, which XLA computes where they are used.
    """
    dependent = {invar for invar, counts in zip(jaxpr.invars, inputs, strict=True) if counts}
    dependent.update(jaxpr.constvars)

    def depends(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in dependent

    for equation in jaxpr.eqns:
        dependent_inputs = [depends(atom) for atom in equation.invars]
        outputs = [any(dependent_inputs)] * len(equation.outvars)
        if equation.primitive.name in ("jit", "pjit"):
            inner = equation.params["jaxpr"].jaxpr
            outputs = _depend(inner, dependent_inputs)
        dependent.update(
            outvar for outvar, counts in zip(equation.outvars, outputs, strict=True) if counts
        )
    return [depends(atom) for atom in jaxpr.outvars]


def _variables(model: keras.Model) -> list[keras.Variable]:
    optimizer = [] if model.optimizer is None else model.optimizer.variables
    return [*model.variables, *optimizer, *model.metrics_variables]


@contextmanager
def _restoring_variables(model: keras.Model) -> Iterator[None]:
    """Context manager that restores the values that Keras loses if the first batch fails.

    The values are referenced, not copied. A step that donates them takes their memory all the same.
    """
    old_values = [(variable, raw_value(variable)) for variable in _variables(model)]
    try:
        with untracked_state(model):
            yield
    except BaseException:
        for variable, value in old_values:
            if raw_value(variable) is None and value is not None and not value.is_deleted():
                set_raw_value(variable, value)
        raise


@jax.jit
def _find_finite(tensors: list[jax.Array]) -> list[jax.Array]:
    # As one program: with several, devices that share threads may wait for each other for ever.
    return [jnp.all(jnp.isfinite(tensor)) for tensor in tensors]

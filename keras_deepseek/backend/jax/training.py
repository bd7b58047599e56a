"""One step of training, as Keras's loop on JAX takes it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras

from keras_deepseek.backend.jax.placement import place_batch
from keras_deepseek.backend.jax.processes import LostPeers

_GROUPS = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)
"""The parts of a training's state, in Keras's order and by Keras's names."""


def make_train_step(
    model: keras.Model,
    step: Callable[[Any], dict[str, Any]],
    carried: Callable[[], Sequence[keras.Variable]] = list,
) -> Callable[..., Any]:
    """Returns what Keras takes as the `train_step` of a model.

    What is carried stands behind the metrics: see `make_train_function`.
    """

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
            [scope.get_current_value(variable) for variable in variables] for variables in groups
        )

    return train_step


def build_by_step(model: keras.Model, batch: Any) -> None:
    """Makes the variables that a model's own `train_step` uses, as far as tracing it does."""
    state = model._get_jax_state(**dict.fromkeys(_GROUPS, True))
    train_step = functools.partial(type(model).train_step, model)
    keras.src.backend.compute_output_spec(train_step, state, batch)


def run_step(model: keras.Model, batch: Any) -> dict[str, Any]:
    """Trains a model, whose training function was made, on one batch, and returns the logs."""
    state = model._get_jax_state(**dict.fromkeys(_GROUPS, True))
    logs, state = model.train_function(state, iter([place_batch(batch)]))
    _hold_state(model, state)
    model.jax_state_sync()
    return dict(logs)


def ends_data(error: Exception) -> bool:
    """Returns whether an error out of a training function says that the data have ended."""
    return isinstance(error, StopIteration)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of a model, its optimizer and its metrics."""
    optimizer = [] if model.optimizer is None else model.optimizer.variables
    return [*model.variables, *optimizer, *model.metrics_variables]


def separate_variables(model: keras.Model) -> None:
    """Gives each variable of a model, its optimizer and its metrics memory of its own."""
    seen: set[int] = set()
    for variable in _variables(model):
        if id(variable.value) in seen:
            variable.assign(keras.ops.copy(variable.value))
        seen.add(id(variable.value))


def keeping_variables(model: keras.Model) -> AbstractContextManager[object]:
    """Returns a context out of which no error leaves a compiled model without its variables."""
    return _keeping_variables(model)


@contextmanager
def _keeping_variables(model: keras.Model) -> Iterator[None]:
    """Puts back the values that Keras forgets where the first batch fails.

    They are held and not copied: a step that is given their memory takes it all the same.
    """
    before = [(variable, variable._value) for variable in _variables(model)]
    try:
        yield
    except BaseException:
        for variable, value in before:
            if variable._value is None and value is not None and not value.is_deleted():
                variable._value = value
        raise


def make_train_function(
    model: keras.Model, carried: Callable[[], Sequence[keras.Variable]], *, force: bool
) -> Callable[..., Any]:
    """Returns what Keras makes of the `train_step` of a model, and keeps in it.

    Between two steps Keras has the values of the model's variables, and the others have their own.
    """
    with _carrying(model, carried):
        type(model).make_train_function(model, force=force)
    train_function = model.train_function

    def run(state: Any, iterator: Any) -> Any:
        *others, metrics = state
        variables = carried()
        try:
            with LostPeers("make a step"):
                logs, (*others, values) = train_function(
                    (*others, [*metrics, *(variable.value for variable in variables)]), iterator
                )
        except Exception:
            # Keras has taken the values out of the variables, and puts back what stands here.
            if not any(value.is_deleted() for values in state for value in values):
                _hold_state(model, state)
            raise
        for variable, value in zip(variables, values[len(metrics) :], strict=True):
            variable.assign(value)
        return logs, (*others, values[: len(metrics)])

    return run


@contextmanager
def _carrying(
    model: keras.Model, carried: Callable[[], Sequence[keras.Variable]]
) -> Iterator[None]:
    """Makes Keras know where the values of further variables lie, until the block ends."""
    by_keras = model._get_state_sharding_spec

    def find_shardings() -> Any:
        *others, metrics = by_keras()
        return *others, [*metrics, *(variable.value.sharding for variable in carried())]

    model._get_state_sharding_spec = find_shardings
    try:
        yield
    finally:
        del model._get_state_sharding_spec


def _hold_state(model: keras.Model, state: Any) -> None:
    """Leaves the values of a model's variables where Keras takes them from, to put them back."""
    model._jax_state = dict(zip(_GROUPS, state, strict=True))
    model._jax_state_synced = False


def run_before_step(
    model: keras.Model, train_step: Callable[..., Any], prepare: Callable[[], None]
) -> Callable[..., Any] | None:
    """Returns a `train_step` that begins with `prepare()`; `None` where no step is compiled."""

    def run(state: Any, data: Any) -> Any:
        trainable, non_trainable, values, metrics = state
        variables = model.optimizer.variables
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            prepare()
        values = [scope.get_current_value(variable) for variable in variables]
        return train_step((trainable, non_trainable, values, metrics), data)

    return run

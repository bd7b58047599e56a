"""The state of a training that Keras on JAX passes from step to step."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.temporary_attributes import (
    own_attributes,
    temporary_attributes,
)

_GROUPS = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)
"""The groups of variables in the state, in Keras's order."""


def read_state(model: keras.Model) -> Any:
    """Returns the values of a model's variables, grouped as in Keras's training step on JAX."""
    return model._get_jax_state(**dict.fromkeys(_GROUPS, True))


def hold_state(model: keras.Model, state: Any) -> None:
    """Stores a training state in a model; `model.jax_state_sync()` copies it to the variables."""
    model._jax_state = dict(zip(_GROUPS, state, strict=True))
    model._jax_state_synced = False


@contextmanager
def with_further_shardings(
    model: keras.Model, find_shardings: Callable[[], list[Any]]
) -> Iterator[None]:
    """Context manager that adds further variables' shardings behind those of the metrics."""
    by_keras = model._get_state_sharding_spec

    def find_all() -> Any:
        *other_shardings, metrics = by_keras()
        return *other_shardings, [*metrics, *find_shardings()]

    with own_attributes(model, _get_state_sharding_spec=find_all):
        yield


def trace_train_step(model: keras.Model, batch: Any) -> None:
    """Traces a model class's `train_step` on a structure of `KerasTensor`s."""

    def train_step(state: Any, batch: Any) -> Any:
        return type(model).train_step(model, state, batch)

    keras.src.backend.compute_output_spec(train_step, read_state(model), batch)


@contextmanager
def changed_steps(change: Callable[[Any], Any]) -> Iterator[None]:
    """Context manager that applies a function to the result of each compiled Keras step."""
    from keras.src.backend.jax.trainer import JAXTrainer

    by_keras = JAXTrainer._make_function

    def make_function(model: keras.Model, *arguments: Any, **options: Any) -> Any:
        step = by_keras(model, *arguments, **options)
        return lambda state, iterator: change(step(state, iterator))

    with temporary_attributes(JAXTrainer, _make_function=make_function):
        yield


def changed_data_distribution(
    distribute: Callable[[Any, Any, str], Any],
) -> AbstractContextManager[None]:
    """Returns a context manager that replaces Keras's function for putting arrays on devices.

    `distribute` takes an array, its layout, and the name of the batch axis.
    """
    return temporary_attributes(
        keras.src.backend.distribution_lib, distribute_data_input=distribute
    )


def distribute_array(array: Any, distribution: Any) -> Any:
    """Puts an array on the devices of a distribution, as Keras's training loop does."""
    return keras.src.backend.distribution_lib.distribute_data_input(
        array, distribution.get_data_layout(array.shape), distribution.batch_dim_name
    )

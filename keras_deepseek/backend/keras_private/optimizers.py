"""The variables, config and counters of an optimizer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable] | None:
    """Returns the variables that an optimizer was built for, or `None` if it is not built."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return list(optimizer._trainable_variables) if optimizer.built else None


def optimizer_recipe(optimizer: keras.optimizers.Optimizer) -> tuple[type, dict[str, Any]]:
    """Returns the class and the config of an optimizer, with its schedule as an object."""
    config = dict(optimizer.get_config())
    if isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = optimizer._learning_rate  # Its class may not be registered.
    return type(optimizer), config


def uses_decay(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Returns True if an optimizer's weight decay applies to a variable."""
    return bool(optimizer._use_weight_decay(variable))


def exclude_from_decay(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> None:
    """Excludes variables from the weight decay of an optimizer that is not built yet."""
    optimizer.exclude_from_weight_decay(var_list=list(variables))


def count_update(optimizer: keras.optimizers.Optimizer) -> None:
    """Counts an update in which no variable changes."""
    optimizer._iterations.assign(optimizer._iterations.value + 1)


def weight_slots(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Returns the variables of a built optimizer that belong to one weight, each with the weight.

    Args:
        optimizer: `keras.optimizers.Optimizer`, not a `LossScaleOptimizer`.
    """
    weights = list(optimizer._trainable_variables)
    found = []
    for value in vars(optimizer).values():
        if isinstance(value, dict):  # A dict by the paths of weights.
            slots = [value.get(weight.path) for weight in weights]
        elif isinstance(value, list) and len(value) == len(weights):
            slots = value
        else:
            continue
        found += [
            (slot, weight)
            for slot, weight in zip(slots, weights, strict=True)
            if isinstance(slot, keras.Variable) and slot is not weight
        ]
    return found


@contextmanager
def making_slots(
    optimizer: keras.optimizers.Optimizer,
    make: Callable[[keras.Variable, Callable[[], keras.Variable]], keras.Variable],
) -> Iterator[None]:
    """Makes a function create the slots of an optimizer, until the block ends.

    Args:
        optimizer: `keras.optimizers.Optimizer`, not a `LossScaleOptimizer`.
        make: Function of a weight, and of a function that creates the variable and returns it.
    """

    def add(reference_variable: keras.Variable, *args: Any, **kwargs: Any) -> keras.Variable:
        method = type(optimizer).add_variable_from_reference
        return make(
            reference_variable, lambda: method(optimizer, reference_variable, *args, **kwargs)
        )

    # Setting an attribute would be slow: Keras and TensorFlow inspect each.
    vars(optimizer)["add_variable_from_reference"] = add
    try:
        yield
    finally:
        del vars(optimizer)["add_variable_from_reference"]

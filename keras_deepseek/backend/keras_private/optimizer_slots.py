"""The variables that an optimizer has for each weight, by private names with a canary test each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras


def weight_slots(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Returns the variables of a built optimizer that are for one weight, each with its weight.

    Args:
        optimizer: `keras.optimizers.Optimizer`, not one that scales the loss of another.
    """
    weights = list(optimizer._trainable_variables)
    found = []
    for value in vars(optimizer).values():
        if isinstance(value, dict):  # By the paths of weights.
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
    """Lets a function make the variables that an optimizer wants for weights, until the block ends.

    Args:
        optimizer: `keras.optimizers.Optimizer`, not one that scales the loss of another.
        make: Function of a weight, and of a function that makes the variable and returns it.
    """

    def add(reference_variable: keras.Variable, *args: Any, **kwargs: Any) -> keras.Variable:
        method = type(optimizer).add_variable_from_reference
        return make(
            reference_variable, lambda: method(optimizer, reference_variable, *args, **kwargs)
        )

    # Not by setting an attribute: Keras and TensorFlow look at each of them.
    vars(optimizer)["add_variable_from_reference"] = add
    try:
        yield
    finally:
        del vars(optimizer)["add_variable_from_reference"]

"""Finds the optimizer variables that belong to each variable of the model.

The order of an optimizer's variables is known to its class only. So it is found by a trial: the
optimizer is built for small variables with unique names.
"""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError

_MARK = re.compile(r"servedvariable(\d+)end")

Slot = tuple[int, int]
"""The index of a model's variable, or -1 for none; and the number of the slot among its slots."""


def find_slot_indices(
    optimizer_class: type,
    config: dict[str, Any],
    variables: Sequence[keras.Variable],
    shards: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Returns the positions of each shard's optimizer variables in the whole model's optimizer.

    `shards` has for each shard the indices of its variables among the trainable variables of the
    model. Raises an `InvalidInputError` if the optimizer has other variables for a shard than for
    the whole model.
    """
    whole = _find_slots(optimizer_class, config, variables, range(len(variables)))
    index_of = {slot: index for index, slot in enumerate(whole)}
    parts = [_find_slots(optimizer_class, config, variables, shard) for shard in shards]
    if {slot for part in parts for slot in part} != set(whole):
        raise InvalidInputError(
            f"The optimizer {optimizer_class.__name__} can't be split: for a part of the model it "
            "has other variables than for all of it. A parameter server needs an optimizer that "
            "updates each variable by itself, such as those of Keras."
        )
    return [[index_of[slot] for slot in part] for part in parts]


def _find_slots(
    optimizer_class: Any,
    config: dict[str, Any],
    variables: Sequence[keras.Variable],
    indices: Sequence[int],
) -> list[Slot]:
    """Returns the slots of an optimizer built for a subset of the variables."""
    optimizer = optimizer_class.from_config(config)
    optimizer.build([_make_small(variables[index], index) for index in indices])
    num_slots: Counter[int] = Counter()
    slots = []
    for variable in optimizer.variables:
        match = _MARK.search(variable.path)
        index = int(match[1]) if match else -1
        slots.append((index, num_slots[index]))
        num_slots[index] += 1
    return slots


def _make_small(variable: keras.Variable, index: int) -> keras.Variable:
    return make_variable(
        f"{variable.path}_servedvariable{index}end", (1,) * len(variable.shape), variable.dtype
    )


def make_variable(path: str, shape: tuple[int, ...], dtype: str) -> keras.Variable:
    """Creates a trainable variable of zeros with a path, which an optimizer may depend on."""
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable("zeros", shape=shape, dtype=dtype, trainable=True, name=name)

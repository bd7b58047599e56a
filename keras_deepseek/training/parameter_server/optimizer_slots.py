"""Which variables of an optimizer belong to which of the model's, whatever optimizer it is.

An optimizer's variables have an order that only it knows, and their names may be anything. So it is
tried: on small variables whose names are unlike any other.
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
"""The place of a variable among the model's, -1 for none of them; and which of its slots it is."""


def find_places(
    optimizer_class: type,
    config: dict[str, Any],
    variables: Sequence[keras.Variable],
    shards: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Returns, for an optimizer of each shard, where its variables stand in that of all.

    Args:
        optimizer_class: The class of the optimizer.
        config: dict. Its config.
        variables: The model's trainable variables, in their order.
        shards: The places of each shard's variables among them.

    Raises:
        InvalidInputError: For a part of the variables it has others than for all.
    """
    whole = _find_slots(optimizer_class, config, variables, range(len(variables)))
    index_of = {slot: index for index, slot in enumerate(whole)}
    parts = [_find_slots(optimizer_class, config, variables, shard) for shard in shards]
    if {slot for part in parts for slot in part} != set(whole):
        raise InvalidInputError(
            f"The optimizer {optimizer_class.__name__} has other variables for a part of the model "
            "than for all of it. A parameter server needs one that updates each variable by "
            "itself, as those of Keras do."
        )
    return [[index_of[slot] for slot in part] for part in parts]


def _find_slots(
    optimizer_class: Any,
    config: dict[str, Any],
    variables: Sequence[keras.Variable],
    places: Sequence[int],
) -> list[Slot]:
    """Returns the slots of an optimizer that is made for some of the variables."""
    optimizer = optimizer_class.from_config(config)
    optimizer.build([_make_small(variables[place], place) for place in places])
    seen: Counter[int] = Counter()
    slots = []
    for variable in optimizer.variables:
        found = _MARK.search(variable.path)
        place = int(found[1]) if found else -1
        slots.append((place, seen[place]))
        seen[place] += 1
    return slots


def _make_small(variable: keras.Variable, place: int) -> keras.Variable:
    return make_variable(
        f"{variable.path}_servedvariable{place}end", (1,) * len(variable.shape), variable.dtype
    )


def make_variable(path: str, shape: tuple[int, ...], dtype: str) -> keras.Variable:
    """Returns a trainable variable of zeros with a path, by which optimizers tell variables apart.

    Args:
        path: string.
        shape: tuple of integers.
        dtype: string.
    """
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable("zeros", shape=shape, dtype=dtype, trainable=True, name=name)

"""The variables of a shard of the model on a server, with the slots of their optimizer."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.optimizers import count_update, exclude_from_decay
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.parameter_server.messages import ShardPlan

_MARK = re.compile(r"servedvariable(\d+)end")  # In the paths that `_make_small` makes.
_NO_VARIABLE = -1

Slot = tuple[int, int]
"""The index of a variable, or `_NO_VARIABLE`; and the number of the slot among its slots."""


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
    """Builds an optimizer for some variables, and tells the slot of each of its own variables."""
    optimizer = optimizer_class.from_config(config)
    optimizer.build([_make_small(variables[index], index) for index in indices])
    num_slots: Counter[int] = Counter()
    slots = []
    for variable in optimizer.variables:
        match = _MARK.search(variable.path)
        index = int(match[1]) if match else _NO_VARIABLE
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


class ShardVariables:
    """Trainable variables and their optimizer, created from a plan on the current device."""

    def __init__(self, plan: ShardPlan) -> None:
        self.weights = [make_variable(row.path, row.shape, row.dtype) for row in plan.variables]
        for variable, row in zip(self.weights, plan.variables, strict=True):
            variable.constraint = row.constraint
        # The class comes from the chief, and the config may hold a schedule.
        self.optimizer: keras.optimizers.Optimizer = plan.optimizer_class.from_config(  # type: ignore[attr-defined]
            plan.optimizer_config
        )
        rows = zip(self.weights, plan.variables, strict=True)
        exclude_from_decay(self.optimizer, [variable for variable, row in rows if not row.decays])
        self.optimizer.build(self.weights)
        self._update: Callable[[Sequence[Any]], None] = backend.current().step.compile_update(
            self.optimizer, self.weights
        )

    def update(self, gradients: Sequence[Any]) -> None:
        """Applies gradients to the variables by the optimizer.

        A gradient is `None` if the loss does not depend on the variable.
        """
        if any(gradient is not None for gradient in gradients):
            with warnings.catch_warnings():  # A loss need not depend on each variable.
                warnings.filterwarnings("ignore", "Gradients do not exist for variables")
                self._update(gradients)
        else:  # Keras refuses an update without gradients, but all servers must count the same.
            count_update(self.optimizer)

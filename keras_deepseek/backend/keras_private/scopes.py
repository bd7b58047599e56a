"""Stateless scopes, in which variables have temporary values."""

from collections.abc import Iterable
from typing import Any

import keras


class NestedScope(keras.StatelessScope):
    """A stateless scope that inherits the values of variables from the scope around it."""

    def __init__(self, mapping: Iterable[tuple[keras.Variable, Any]] = ()) -> None:
        super().__init__(list(mapping), collect_losses=True)
        self.state_mapping: dict[int, Any]
        around = keras.src.backend.common.stateless_scope.get_stateless_scope()
        if around is not None:
            self.state_mapping = {**around.state_mapping, **self.state_mapping}
        self.assigned: dict[int, keras.Variable] = {}
        """The variables that were assigned in the scope, by `id`."""

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Records a variable's new value; Keras calls it for each assignment."""
        variable, _ = update
        self.assigned[id(variable)] = variable
        super().add_update(update)


def scoped_values(variables: Iterable[keras.Variable]) -> list[tuple[keras.Variable, Any]]:
    """Returns the variables that have a value in the current stateless scope, with this value."""
    around = keras.src.backend.common.stateless_scope.get_stateless_scope()
    if around is None:
        return []
    values = [(variable, around.get_current_value(variable)) for variable in variables]
    return [(variable, value) for variable, value in values if value is not None]

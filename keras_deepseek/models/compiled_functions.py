"""The functions that a model was compiled into, kept for as long as it has the same variables.

What generates text and what recommends items keep theirs here.
"""

from collections.abc import Callable
from typing import Any

import keras


class CompiledFunctions:
    """Compiled functions of one model, made when they are first asked for.

    They are made anew when the model has other variables: `enable_lora`, `merge_lora` and
    `quantize` change them, and what was compiled would go on by the former ones.

    Args:
        model: `keras.Model`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._functions: dict[Any, Any] = {}
        self._variables: list[int] = []  # The variables themselves would stay in memory.

    def find(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns the function of a key.

        Args:
            key: What stands for it.
            make: Function without arguments that compiles it.
        """
        variables = [id(variable) for variable in self.model.variables]
        if variables != self._variables:
            self._functions, self._variables = {}, variables
        if key not in self._functions:
            self._functions[key] = make()
        return self._functions[key]

"""A cache of a model's compiled functions, for text generation and recommendations."""

from collections.abc import Callable
from typing import Any

from keras_deepseek.models.config_model import ConfigModel


class CompiledFunctions:
    """A cache of compiled functions of one model.

    It is cleared when the model has other variables: `enable_lora`, `merge_lora` and `quantize`
    change them, and a compiled function would go on with the old ones.
    """

    def __init__(self, model: ConfigModel) -> None:
        self.model = model
        self._functions: dict[Any, Any] = {}
        self._variables: list[int] = []  # Their ids: a reference would keep them in memory.

    def find(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns the cached compiled function of a key; at first use `make` compiles it."""
        self.model.mapped_weights.prepare_decoding()
        variables = [id(variable) for variable in self.model.variables]
        if variables != self._variables:
            self._functions, self._variables = {}, variables
        if key not in self._functions:
            self._functions[key] = make()
        return self._functions[key]

"""The layers of a model by the name scopes that a compiled program has."""

import functools
import re

import keras

from keras_deepseek.backend.keras_private.layers import unique_paths
from keras_deepseek.backend.profiling.step_trace import BACKWARD, LOSS, OPTIMIZER, Owner

_WRAPPED = re.compile(r"^(?:(?:transpose|jvp|vmap|remat|checkpoint)\()+")
_NUMBER = re.compile(r"_\d+$")


class LayerScopes:
    """Finds the owner of an operation by its scope, such as `model/block/head/dot_general`.

    Args:
        is_numbered: boolean. TensorFlow appends a number to a scope that is entered again. Keras
            enters each layer's scope twice, first to build it: `head_1` is the layer `head`, and
            `dense_1_2` is `dense_1`.
    """

    def __init__(self, model: keras.Model, *, is_numbered: bool) -> None:
        self._is_numbered = is_numbered
        self._inner: dict[str, dict[str, str]] = {"": {}}  # The layers in a layer, by name.
        with unique_paths(model) as layers:
            for path, (layer, outer) in layers.items():
                self._inner.setdefault(path, {})
                self._inner[outer].setdefault(layer.name, path)
            self.root = next(iter(layers))
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        self._parts = {LOSS: "loss", "compile_loss": "loss", OPTIMIZER: "optimizer"}
        self._parts[optimizer.name] = "optimizer"
        self._find_layer = functools.cache(self._search_layer)
        self.owner = functools.cache(self._find_owner)
        """Function that returns the owner of a scope; its part is `"rest"` if none is known."""

    def _find_owner(self, scope: str) -> Owner:
        is_backward = "transpose(" in scope or "gradient_tape" in scope
        part, layer = "rest", ""
        *scopes, _ = scope.split("/")  # The last one is the name of the operation.
        for name in scopes:
            bare = _WRAPPED.sub("", name).rstrip(")")
            short = _NUMBER.sub("", bare) if self._is_numbered else bare
            if matched_part := self._parts.get(short, self._parts.get(bare)):
                part, layer = matched_part, ""
            elif BACKWARD in (short, bare):
                part, layer, is_backward = "forward", self.root, True
            elif inner := self._find_layer(layer, short) or self._find_layer(layer, bare):
                part, layer = "forward", inner
        if part == "rest" and "jvp(" in scope:  # JAX: differentiated outside of any layer.
            part, layer = "forward", self.root
        return Owner("backward" if part == "forward" and is_backward else part, layer)

    def _search_layer(self, outer: str, name: str) -> str | None:
        """Returns the path of the nearest layer of a name inside a layer, or `None`."""
        level = [outer]
        while level:
            for path in level:
                if name in self._inner[path]:
                    return self._inner[path][name]
            level = [inner for path in level for inner in self._inner[path].values()]
        return None

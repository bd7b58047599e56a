"""Quantization of a model's layers while its checkpoint is read."""

from collections import defaultdict
from collections.abc import Sequence

import keras

from keras_deepseek.backend.keras_private.layers import own_variables
from keras_deepseek.backend.keras_private.quantization import (
    forget_parameters,
    frozen_objects,
    layers_to_quantize,
)
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry


class QuantizedLoading:
    """Quantizes each layer as soon as all of its weights are read, so that few are whole at once.

    Args:
        model: The model, whose weights are not read yet.
        entries: Its checkpoint map.
        mode: `"int8"` or `"int4"`.
    """

    def __init__(self, model: keras.Model, entries: Sequence[CheckpointEntry], mode: str) -> None:
        forget_parameters(model)
        self._mode = mode
        self._config = keras.quantizers.Int4QuantizationConfig() if mode == "int4" else None
        read = {id(variable) for entry in entries for variable in entry.variables}
        self._layers: dict[int, keras.Layer] = {}
        self._missing: dict[int, int] = defaultdict(int)
        for layer in layers_to_quantize(model, None):
            for variable in own_variables(layer):
                if id(variable) in read:
                    self._layers[id(variable)] = layer
                    self._missing[id(layer)] += 1

    def finish_entry(self, entry: CheckpointEntry) -> None:
        """Quantizes the layers whose last weights this entry filled."""
        for variable in entry.variables:
            layer = self._layers.pop(id(variable), None)
            if layer is None:
                continue
            self._missing[id(layer)] -= 1
            if not self._missing[id(layer)]:
                with frozen_objects():
                    layer.quantize(self._mode, config=self._config)

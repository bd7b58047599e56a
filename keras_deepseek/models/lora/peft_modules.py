"""The `transformers` modules that `peft` can adapt, and their Keras layers.

The LoRA matrices of a module and of its layers are converted into each other here; `peft_adapter`
reads and writes folders. A `Linear` may hold several kernels, and an `Embedding` holds one table.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.lora.adapted_layers import path_of, read_matrices
from keras_deepseek.models.lora.adapter_assignment import LayerAdapter
from keras_deepseek.models.lora.peft_factors import (
    Factors,
    LinearLayout,
    join_factors,
    split_blocks,
    split_shared,
)


def find_modules(
    model: PresetModel, layers_of: Mapping[int, keras.Layer]
) -> dict[str, "PeftLinear | PeftEmbedding"]:
    """Returns the modules that can have a LoRA in `peft`, by their `transformers` name.

    `layers_of` has the layers by the `id` of the variable to which a LoRA is added.
    """
    modules: dict[str, PeftLinear | PeftEmbedding] = {}
    for entry in model.module_entries():
        layers = [
            layers_of[id(variable)] for variable in entry.variables if id(variable) in layers_of
        ]
        name = entry.tensors[0].removesuffix(".weight")
        if layers and isinstance(layers[0], keras.layers.Embedding):
            # If the head uses the same table, `peft` adapts only one of them, and Keras both.
            if not getattr(layers[0], "tie_weights", False):
                modules[name] = PeftEmbedding(layers[0])
        elif layers and len(entry.tensors) == 1 and _is_linear(entry):
            modules[name] = PeftLinear(entry, layers_of)
    return modules


def _is_linear(entry: CheckpointEntry) -> bool:
    matrix = 2
    is_matrix = all(len(variable.shape) == matrix for variable in entry.variables)
    return entry.num_input_axes is not None or is_matrix


@dataclass(frozen=True)
class PeftLinear:
    """A `Linear` of `transformers`, with the Keras layers whose kernels it contains.

    `entry` is the checkpoint entry of its weight; `layers_of` has the layers by the `id` of their
    kernel.
    """

    entry: CheckpointEntry
    layers_of: Mapping[int, keras.Layer]

    suffixes: ClassVar[tuple[str, str]] = (".lora_A.weight", ".lora_B.weight")

    @property
    def layers(self) -> list[keras.Layer | None]:
        """The layer of each kernel in the `Linear`; `None` for a layer without a LoRA."""
        return [self.layers_of.get(id(variable)) for variable in self.entry.variables]

    @property
    def _layout(self) -> LinearLayout:
        count = self.entry.num_input_axes or 1
        shapes = [tuple(variable.shape) for variable in self.entry.variables]
        return LinearLayout(
            math.prod(shapes[0][:count]),
            math.prod(shapes[0][count:-1]),
            tuple(shape[-1] for shape in shapes),
        )

    @property
    def scale(self) -> float:
        """The factor of the product of the LoRA matrices: `lora_alpha / rank`."""
        first = next(layer for layer in self.layers if layer is not None)
        return float(first.lora_alpha / first.lora_rank)

    def join(self) -> Factors:
        """Returns the LoRA as `lora_A` and `lora_B` in the layout of `peft`."""
        read = [None if layer is None else self._read(layer) for layer in self.layers]
        return join_factors(self._layout, read)

    def _read(self, layer: keras.Layer) -> Factors:
        a, b = read_matrices(layer)
        if self.entry.num_input_axes is None:  # The file has its rows in another order.
            a = np.asarray(self.entry.to_tensors([a])[0]).T
        shape = (self._layout.num_inputs, self._layout.num_blocks, -1)
        return a.reshape(shape), b * np.float32(layer.lora_alpha / layer.lora_rank / self.scale)

    def split(
        self, down: Array, up: Array, scale: float, *, is_there: bool
    ) -> dict[str, LayerAdapter] | None:
        """Converts `lora_A` and `lora_B` to one `LayerAdapter` per Keras layer, by its path.

        `None` if these can't represent the LoRA. `down` is `(rank, num_inputs)`, `up`
        `(num_outputs, rank)`, and `scale` the factor of their product. `is_there` is true if the
        model has the LoRA already.
        """
        has_lora = [layer is not None for layer in self.layers]
        expected = self.entry.tensor_shapes()[0]
        if (up.shape[0], down.shape[-1]) != expected or up.shape[-1] != down.shape[0]:
            first = next(layer for layer in self.layers if layer is not None)
            return {path_of(first): LayerAdapter(down.T, up.T, scale)}  # Reported as a mismatch.
        choices = [has_lora]
        if not is_there:  # Kernels without a share in it may have had no LoRA.
            layout = self._layout
            rows = up.reshape(layout.num_blocks, -1, up.shape[-1])
            choices.append(
                [
                    bool(rows[:, offset : offset + width].any())
                    for offset, width in zip(layout.offsets, layout.widths, strict=True)
                ]
            )
        for split in (split_blocks, split_shared):
            for choice in filter(any, choices):
                parts = split(self._layout, down, up, choice)
                if parts is not None:
                    return self._name(parts, scale)
        return None

    def _name(self, parts: list[Factors | None], scale: float) -> dict[str, LayerAdapter]:
        named = {}
        for variable, part in zip(self.entry.variables, parts, strict=True):
            if part is None:
                continue
            a, b = part
            rank = a.shape[-1]
            if self.entry.num_input_axes is None:
                a = np.asarray(self.entry.to_variables([a[:, 0].T])[0])
            a = a.reshape(*variable.shape[:-1], rank)
            named[path_of(self.layers_of[id(variable)])] = LayerAdapter(a, b, scale * rank)
        return named


@dataclass(frozen=True)
class PeftEmbedding:
    """An `Embedding` of `transformers`. In `peft` its LoRA matrices are transposed."""

    layer: keras.layers.Embedding

    suffixes: ClassVar[tuple[str, str]] = (".lora_embedding_A", ".lora_embedding_B")

    @property
    def layers(self) -> list[keras.Layer | None]:
        """The Keras embedding layer, in a list."""
        return [self.layer]

    @property
    def scale(self) -> float:
        """The factor of the product of the LoRA matrices: `lora_alpha / rank`."""
        return float(self.layer.lora_alpha / self.layer.lora_rank)

    def join(self) -> Factors:
        """Returns the LoRA of the embedding in the layout of `peft`."""
        a, b = read_matrices(self.layer)
        return a.T, b.T

    def split(
        self, down: Array, up: Array, scale: float, *, is_there: bool
    ) -> dict[str, LayerAdapter]:
        """Converts a `peft` embedding's LoRA to a `LayerAdapter`, by the path of its layer.

        `down` is `(rank, vocabulary_size)`, `up` `(dim, rank)`, and `scale` the factor of their
        product. `is_there` does not matter.
        """
        return {path_of(self.layer): LayerAdapter(down.T, up.T, scale * len(down))}

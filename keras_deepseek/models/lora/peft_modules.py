"""The `transformers` modules that `peft` can adapt, and their Keras layers.

The LoRA matrices of a module and of its layers are converted into each other here; `peft_adapter`
reads and writes folders. A `Linear` may hold several kernels, and an `Embedding` holds one table.

A `Linear` may consist of several kernels here, each with an optional axis of heads. For a kernel to
heads, Keras has a matrix A for each head and one B for all; `peft` has one A for all heads and a B
for each. Either form can represent the other with a rank that is `num_heads` times as large, and
zeros between the blocks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.lora.adapted_layers import path_of, read_matrices
from keras_deepseek.models.lora.lora_weights import LayerAdapter

Factors = tuple[Array, Array]


@dataclass(frozen=True)
class LinearLayout:
    """The layout of Keras kernels within one PyTorch `Linear`.

    Args:
        num_inputs: The number of inputs.
        num_blocks: The number of blocks of outputs, such as heads; 1 for none.
        widths: The number of outputs in a block for each kernel.
    """

    num_inputs: int
    num_blocks: int
    widths: tuple[int, ...]

    @property
    def offsets(self) -> list[int]:
        """The index of each kernel's first output within a block of outputs."""
        return [sum(self.widths[:index]) for index in range(len(self.widths))]


def join_factors(layout: LinearLayout, factors: Sequence[Factors | None]) -> Factors:
    """Merges the LoRA of several kernels into one `lora_A.weight` and `lora_B.weight`.

    `factors` has for each kernel its A, `(num_inputs, num_blocks, rank)`, and B, `(rank, width)`,
    or `None` for a kernel without a LoRA.
    """
    downs, ups = [], []
    total = sum(layout.widths)
    for offset, factor in zip(layout.offsets, factors, strict=True):
        if factor is None:
            continue
        down, of_blocks = _join_blocks(*factor)
        up = np.zeros((layout.num_blocks, total, len(down)), of_blocks.dtype)
        up[:, offset : offset + of_blocks.shape[1]] = of_blocks
        downs.append(down)
        ups.append(up.reshape(layout.num_blocks * total, -1))
    # If all kernels share one A, each B fills other rows, and their sum is the whole B.
    if all(np.array_equal(down, downs[0]) for down in downs):
        return downs[0], np.sum(ups, axis=0, dtype=ups[0].dtype)
    return np.concatenate(downs), np.concatenate(ups, axis=1)


def _join_blocks(a: Array, b: Array) -> Factors:
    """Converts Keras's A and B to one A for all blocks and a B for each block.

    From `(inputs, blocks, rank)` and `(rank, width)` to `(r, inputs)` and `(blocks, width, r)`.
    """
    num_inputs, num_blocks, rank = a.shape
    width = b.shape[1]
    shared = _find_shared(a)
    if shared is not None:
        return shared, b.reshape(num_blocks, -1, width).transpose(0, 2, 1)
    if num_blocks > 1 and rank >= width and num_blocks * rank > num_inputs:
        # The whole product, as `split_shared` may make it, has a smaller rank.
        change = np.einsum("iby,yw->bwi", a, b)
        return np.eye(num_inputs, dtype=a.dtype), change
    return a.transpose(1, 2, 0).reshape(-1, num_inputs), _repeat_block(b, num_blocks)


def _repeat_block(b: Array, num_blocks: int) -> Array:
    """Returns one B per block, nonzero only for its own A: `(blocks, width, blocks * rank)`."""
    rank, width = b.shape
    up = np.zeros((num_blocks, width, num_blocks, rank), b.dtype)
    for block in range(num_blocks):
        up[block, :, block] = b.T
    return up.reshape(num_blocks, width, -1)


def _find_shared(a: Array) -> Array | None:
    """Returns the A that `_share` repeated for each block; `None` for any other `a`."""
    num_inputs, num_blocks, rank = a.shape
    if rank % num_blocks:
        return None
    parts = a.reshape(num_inputs, num_blocks, num_blocks, -1)
    expected = np.zeros_like(parts)
    for block in range(num_blocks):
        expected[:, block, block] = parts[:, 0, 0]
    return parts[:, 0, 0].T if np.array_equal(parts, expected) else None


def split_blocks(
    layout: LinearLayout, down: Array, up: Array, has_lora: Sequence[bool]
) -> list[Factors | None] | None:
    """Splits `lora_A` and `lora_B` of a `Linear` into one A and B for each Keras kernel.

    It is the inverse of `join_factors`. `down` is `(rank, num_inputs)`, `up` `(num_outputs, rank)`.
    `has_lora` says for each kernel if it has a LoRA; without one its factors are `None`. Returns
    `None` for all if `join_factors` did not make these matrices.
    """
    blocks, start = layout.num_blocks, 0
    rank, uneven = divmod(len(down), blocks * sum(has_lora))
    if not rank or uneven:
        return None
    # Each kernel's part is subtracted. A rest at the end: `join_factors` did not make the matrices.
    residual = up.reshape(blocks, -1, len(down)).copy()
    parts: list[Factors | None] = []
    for offset, width, has in zip(layout.offsets, layout.widths, has_lora, strict=True):
        if not has:
            parts.append(None)
            continue
        end = start + blocks * rank
        a = down[start:end].reshape(blocks, rank, layout.num_inputs).transpose(2, 0, 1)
        b = residual[0, offset : offset + width, start : start + rank].T.copy()
        residual[:, offset : offset + width, start:end] -= _repeat_block(b, blocks)
        parts.append((a, b))
        start = end
    return None if residual.any() else parts


def split_shared(
    layout: LinearLayout, down: Array, up: Array, has_lora: Sequence[bool]
) -> list[Factors | None] | None:
    """Splits any LoRA of a `peft` `Linear` into LoRA matrices A and B for each Keras kernel.

    The rank for kernels to heads is `num_blocks` times that of `peft`, or the width of a head if
    that is less. The arguments are those of `split_blocks`. Returns `None` for all if a kernel
    without a LoRA would need one.
    """
    rows = up.reshape(layout.num_blocks, -1, len(down))
    parts: list[Factors | None] = []
    for offset, width, has in zip(layout.offsets, layout.widths, has_lora, strict=True):
        of_kernel = rows[:, offset : offset + width]
        if not has and of_kernel.any():
            return None
        parts.append(_share(down, of_kernel) if has else None)
    return parts


def _share(down: Array, up: Array) -> Factors:
    """Converts an A for all blocks and a B for each block to Keras's A and B of one kernel.

    From `(rank, inputs)` and `(blocks, width, rank)` to `(inputs, blocks, r)` and `(r, width)`.
    """
    num_blocks, width, rank = up.shape
    # The smaller rank is that of the whole product, with an identity as B.
    if num_blocks > 1 and num_blocks * rank > width:
        return np.einsum("ri,bwr->ibw", down, up), np.eye(width, dtype=up.dtype)
    a = np.zeros((down.shape[1], num_blocks, num_blocks, rank), down.dtype)
    for block in range(num_blocks):
        a[:, block, block] = down.T
    b = up.transpose(0, 2, 1).reshape(num_blocks * rank, width)
    return a.reshape(down.shape[1], num_blocks, -1), b


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
    num_experts: ClassVar[int] = 1

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
        """Returns a layer's A `(inputs, blocks, rank)`, and B in the scale of the whole module."""
        a, b = read_matrices(layer)
        if self.entry.num_input_axes is None:  # The file has its rows in another order.
            a = np.asarray(self.entry.to_tensors([a])[0]).T
        shape = (self._layout.num_inputs, self._layout.num_blocks, -1)
        return a.reshape(shape), b * np.float32(layer.lora_alpha / layer.lora_rank / self.scale)

    def split(
        self, down: Array, up: Array, scale: float, *, is_enabled: bool
    ) -> dict[str, LayerAdapter] | None:
        """Converts `lora_A` and `lora_B` to one `LayerAdapter` per Keras layer, by its path.

        Returns `None` if the Keras layers can't represent it. `down` is `(rank, num_inputs)`, `up`
        `(num_outputs, rank)`, and `scale` the factor of their product. `is_enabled` is true if the
        model has the LoRA already.
        """
        has_lora = [layer is not None for layer in self.layers]
        expected = self.entry.tensor_shapes()[0]
        if (up.shape[0], down.shape[-1]) != expected or up.shape[-1] != down.shape[0]:
            first = next(layer for layer in self.layers if layer is not None)
            return {path_of(first): LayerAdapter(down.T, up.T, scale)}  # Reported as a mismatch.
        # Each choice says for each kernel whether it gets a LoRA. The first that fits is used.
        choices = [has_lora]
        if not is_enabled:  # A kernel whose rows of B are all zero may have had no LoRA.
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
    num_experts: ClassVar[int] = 1

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
        self, down: Array, up: Array, scale: float, *, is_enabled: bool
    ) -> dict[str, LayerAdapter]:
        """Converts a `peft` embedding's LoRA to a `LayerAdapter`, by the path of its layer.

        `down` is `(rank, vocabulary_size)`, `up` `(dim, rank)`, and `scale` the factor of their
        product. `is_enabled` does not matter.
        """
        return {path_of(self.layer): LayerAdapter(down.T, up.T, scale * len(down))}

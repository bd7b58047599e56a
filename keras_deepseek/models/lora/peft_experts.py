"""The stacked experts of `transformers`, and the LoRA that `peft` adds to their parameters.

On transformers 5 the experts of a layer are one module with two parameters, `gate_up_proj` and
`down_proj`. `peft` adds a LoRA to each that `target_parameters` names. Its `lora_A.weight` has the
matrices of all experts, `(num_experts * rank, inputs)`, and its `lora_B.weight` is
`(outputs, rank * num_experts)`. The LoRA of both belongs to nested modules: `experts.base_layer` is
that of `gate_up_proj`. Earlier adapters have a `Linear` for each projection of each expert.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.layers.moe.expert_kernels import ExpertKernels
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.lora.adapted_layers import path_of, read_matrices
from keras_deepseek.models.lora.lora_weights import LayerAdapter

Factors = tuple[Array, Array]

_PARAMETERS = {"gate_up_proj": ("expert_gate", "expert_up"), "down_proj": ("expert_down",)}
"""The Keras layers of each parameter."""

_PROJECTIONS = {"gate_proj": ("expert_gate",), "up_proj": ("expert_up",), **_PARAMETERS}
_STEM = re.compile(r"(.*\.experts)(\.base_layer)?$")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)$")


@dataclass(frozen=True)
class PeftExperts:
    """A parameter of all experts in `transformers`, and the Keras layers whose kernels it joins.

    A layer is `None` if it has no LoRA. `shape` is that of one Keras kernel.
    """

    layers: list[keras.Layer | None]
    shape: tuple[int, int, int]

    suffixes: ClassVar[tuple[str, str]] = (".lora_A.weight", ".lora_B.weight")

    @property
    def num_experts(self) -> int:
        """The number of experts, by which the rank of the two tensors is divided."""
        return self.shape[0]

    @property
    def scale(self) -> float:
        """The factor of the product of the LoRA matrices: `lora_alpha / rank`."""
        first = next(layer for layer in self.layers if layer is not None)
        return float(first.lora_alpha / first.lora_rank)

    def fits(self, down: Array, up: Array) -> bool:
        """Returns True if the two tensors of a LoRA have the inputs and outputs of the experts."""
        _, inputs, outputs = self.shape
        sizes = (inputs, outputs * len(self.layers))
        return (down.shape[-1], up.shape[0]) == sizes and len(down) % self.num_experts == 0

    def join(self) -> Factors:
        """Returns the LoRA as `lora_A` and `lora_B` in the layout of `peft`."""
        count, _, width = self.shape
        parts = [
            (index, *read_matrices(layer), layer.lora_alpha / layer.lora_rank / self.scale)
            for index, layer in enumerate(self.layers)
            if layer is not None
        ]
        shares = all(np.array_equal(a, parts[0][1]) for _, a, _, _ in parts)
        ranks = [0 if shares else a.shape[-1] for _, a, _, _ in parts]
        starts = np.cumsum([0, *ranks])
        a = parts[0][1] if shares else np.concatenate([a for _, a, _, _ in parts], axis=-1)
        b = np.zeros((count, a.shape[-1], width * len(self.layers)), parts[0][2].dtype)
        for (index, _, part, factor), start in zip(parts, starts, strict=False):
            columns = slice(index * width, (index + 1) * width)
            b[:, start : start + part.shape[1], columns] = part * np.float32(factor)
        return a.transpose(0, 2, 1).reshape(-1, a.shape[1]), b.transpose(2, 1, 0).reshape(
            b.shape[2], -1
        )

    def split(
        self, down: Array, up: Array, scale: float, *, is_enabled: bool
    ) -> dict[str, LayerAdapter] | None:
        """Converts `lora_A` and `lora_B` to one `LayerAdapter` per Keras layer, by its path.

        Returns `None` if a layer without a LoRA would need one. The arguments are those of
        `PeftLinear.split`.
        """
        count, inputs, _ = self.shape
        a = down.reshape(count, -1, inputs).transpose(0, 2, 1)
        rank = a.shape[-1]
        bs = np.split(up.reshape(-1, rank, count).transpose(2, 1, 0), len(self.layers), axis=-1)
        has_numbers = [bool(b.any()) for b in bs]
        chosen = [
            index
            for index, layer in enumerate(self.layers)
            if layer is not None and (is_enabled or has_numbers[index] or not any(has_numbers))
        ]
        if any(has for index, has in enumerate(has_numbers) if index not in chosen):
            return None
        parts = {index: (a, bs[index]) for index in chosen}
        own_rank, uneven = divmod(rank, len(chosen))
        rows = [slice(i * own_rank, (i + 1) * own_rank) for i in range(len(chosen))]
        blocks = dict(zip(chosen, rows, strict=True))
        if not uneven and all(not np.delete(bs[i], blocks[i], axis=1).any() for i in chosen):
            parts = {i: (a[..., blocks[i]], bs[i][:, blocks[i]]) for i in chosen}  # By `join`.
        return {
            path_of(self.layers[i]): LayerAdapter(a, b, scale * a.shape[-1])
            for i, (a, b) in parts.items()
        }


def find_experts(
    model: PresetModel, layers_of: Mapping[int, keras.Layer], *, by_projection: bool = False
) -> dict[str, PeftExperts]:
    """Returns the parameters of experts that can have a LoRA in `peft`, by their name.

    `layers_of` has the layers by the `id` of the variable to which a LoRA is added. With
    `by_projection` the projections of earlier adapters are among them.
    """
    kernels: dict[str, dict[str, ExpertKernels]] = {}  # By the name of the experts' module.
    for entry in model.module_entries():
        for variable in entry.variables:
            layer = layers_of.get(id(variable))
            if isinstance(layer, ExpertKernels):
                stem = entry.tensors[0].partition(".experts.")[0] + ".experts"
                kernels.setdefault(stem, {})[layer.name] = layer
    return {
        f"{stem}.{parameter}": PeftExperts(
            [layers.get(name) for name in names],
            next(layers[name].kernel_shape for name in names if name in layers),
        )
        for stem, layers in kernels.items()
        for parameter, names in (_PROJECTIONS if by_projection else _PARAMETERS).items()
        if any(name in layers for name in names)
    }


def tensor_name(name: str, names: Collection[str]) -> str:
    """Returns the module that has the LoRA of a parameter of experts, or `name` of another module.

    `names` are those of all that have a LoRA.
    """
    stem, _, parameter = name.rpartition(".")
    if not stem.endswith(".experts"):
        return name
    is_inner = parameter == "gate_up_proj" and f"{stem}.down_proj" in names
    return f"{stem}.base_layer" if is_inner else stem


def take_experts(
    pairs: dict[str, Factors], experts: Mapping[str, PeftExperts]
) -> dict[str, Factors]:
    """Removes the LoRA of experts from pairs of tensors by module, and returns it by parameter.

    A `Linear` for each expert becomes a parameter of all, such as `experts.gate_proj`. Names that
    fit no parameter are left.
    """
    factors = {}
    linears: dict[str, dict[int, str]] = {}
    for name in list(pairs):
        if match := _EXPERT.match(name):
            linears.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = name
        elif match := _STEM.match(name):
            for parameter in (f"{match[1]}.{parameter}" for parameter in _PARAMETERS):
                if parameter in experts and experts[parameter].fits(*pairs[name]):
                    factors[parameter] = pairs.pop(name)
                    break
    for parameter, names in linears.items():
        if parameter not in experts or sorted(names) != list(range(experts[parameter].num_experts)):
            continue
        of_experts = [pairs[names[index]] for index in sorted(names)]
        if len({(down.shape, up.shape) for down, up in of_experts}) == 1:
            downs, ups = zip(*of_experts, strict=True)
            up = np.stack(ups, axis=-1)
            factors[parameter] = np.concatenate(downs), up.reshape(len(up), -1)
            for name in names.values():
                del pairs[name]
    return factors

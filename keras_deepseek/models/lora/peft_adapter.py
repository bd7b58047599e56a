"""The LoRA of a language model as `peft` writes and reads it, beside its checkpoint."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.argument_check import check_path
from keras_deepseek.artifacts.errors import CheckpointError, InvalidInputError, NotSupportedError
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.preset_folder import new_folder, read_json, write_json
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.checkpoints.weights_writer import write_tensors
from keras_deepseek.models.lora.adapted_layers import (
    find_adapted,
    find_candidates,
    kernel_of,
    lora_variables,
    path_of,
)
from keras_deepseek.models.lora.adapter_assignment import LayerAdapter, assign_adapters
from keras_deepseek.models.lora.lora_weights import read_tensors
from keras_deepseek.models.lora.low_rank_adaptation import check_lora
from keras_deepseek.models.lora.peft_factors import (
    Factors,
    LinearLayout,
    join_factors,
    split_factors,
)

_CONFIG_NAME, _WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")
_NAMES_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
"""`peft` (0.21, on transformers 5) takes whatever ends in these for the experts, in any layer."""


def save_peft_adapter(model: PresetModel, folder: str | os.PathLike[str]) -> None:
    """Writes the LoRA of a language model as a folder that `peft` loads onto `transformers`' model.

    Its names are those of the checkpoint that `save_to_preset` writes, and the logits are the same.
    Keras's LoRA of a projection to heads (`query_up`, `key_up`, `value_up`) has a matrix a head:
    the folder holds it as one of `num_heads` times the rank. Give `enable_lora` the names of the
    layers of attention: `peft` takes all feed-forward layers for experts, which have no LoRA here.

    Args:
        model: Language model of this package that has a LoRA, but none in its embeddings.
        folder: Where it will stand. An adapter there is replaced.

    Raises:
        InvalidInputError: The model has no LoRA, or is of no family that has a checkpoint map.
        NotSupportedError: A layer has a LoRA that `peft` has no such form of.
        CheckpointError: Something else stands there, or nothing can be written there.
    """
    adapted = {id(kernel_of(layer)): layer for layer in check_lora(model)}
    arrays: dict[str, Array] = {}
    modules: dict[str, tuple[int, float]] = {}
    for entry in _linear_entries(model, adapted):
        module = _Module(entry, adapted)
        if not any(module.layers):
            continue
        name = entry.tensors[0].removesuffix(".weight")
        _check_written(name, module)
        scale = module.scale
        down, up = join_factors(module.layout, module.read(scale))
        modules[name] = (len(down), scale * len(down))
        arrays |= {f"{_PREFIX}{name}{end}": x for end, x in zip(_SUFFIXES, (down, up), strict=True)}
    with new_folder(folder, (_CONFIG_NAME, _WEIGHTS_NAME), _CONFIG_NAME) as work:
        write_json(work, _CONFIG_NAME, _make_config(modules))
        write_tensors(work / _WEIGHTS_NAME, {n: np.ascontiguousarray(x) for n, x in arrays.items()})


def load_peft_adapter(model: PresetModel, folder: str | os.PathLike[str]) -> None:
    """Reads a LoRA that `save_peft_adapter`, or `peft`, wrote for such a model.

    A model that has none is given that one, and all else is frozen. What `peft` trained on a
    projection to heads (`q_b_proj`, `kv_b_proj`, `q_proj` without query compression) is of a form
    that Keras's layers have not: such an adapter is refused.

    Args:
        model: Language model of this package.
        folder: It holds `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        InvalidInputError: It is the adapter of another model, or another than the model's.
        NotSupportedError: It is no plain LoRA of `Linear`s, or one of a projection to heads.
        CheckpointError: A file is missing or torn.
    """
    path = Path(check_path("folder", folder))
    config = read_json(path, _CONFIG_NAME)
    _check_config(config)
    layers = {id(kernel_of(layer)): layer for layer in find_adapted(model)}
    is_there = bool(layers)
    layers = layers or {id(kernel_of(layer)): layer for layer in find_candidates(model)}
    modules = {
        entry.tensors[0].removesuffix(".weight"): _Module(entry, layers)
        for entry in _linear_entries(model, layers)
    }
    adapters: dict[str, LayerAdapter] = {}
    headwise = []
    for name, (down, up) in _read_pairs(path).items():
        if name not in modules:
            adapters[name] = LayerAdapter(down, up, 1.0)  # Which is then named as unknown.
            continue
        read = modules[name].split(down, up, _scale_of(config, name, len(down)), is_there=is_there)
        if read is None:
            headwise.append(name)
        else:
            adapters |= read
    if headwise:
        raise NotSupportedError(
            f"{str(path)!r} has a LoRA of {', '.join(headwise[:5])} that the layers of Keras can't "
            "have: they have one a head, and none over several kernels of which some are frozen. "
            "Merge it in `peft` (merge_and_unload), or leave these out of its target_modules."
        )
    assign_adapters(model, adapters, str(path))


def _linear_entries(model: Any, layers: Mapping[int, keras.Layer]) -> list[CheckpointEntry]:
    """Returns the entries of kernels that have, or can have, a LoRA."""
    if not isinstance(model, PresetModel):
        raise InvalidInputError(
            f"`peft` has names for language models of this package alone, received a "
            f"`{type(model).__name__}`. Use save_lora_weights and load_lora_weights."
        )
    entries = [
        entry
        for entry in model.checkpoint_entries()
        if any(id(variable) in layers for variable in entry.variables)
    ]
    other = [
        path_of(layers[id(variable)])
        for entry in entries
        for variable in entry.variables
        if id(variable) in layers and isinstance(layers[id(variable)], keras.layers.Embedding)
    ]
    if other and find_adapted(model):
        raise NotSupportedError(
            f"The LoRA of {', '.join(other)} has no such form in `peft`, whose embedding and head "
            "are two. Leave embeddings out of `target_names`, or use save_lora_weights."
        )
    return [entry for entry in entries if len(entry.tensors) == 1]


def _check_written(name: str, module: "_Module") -> None:
    if name.endswith(_NAMES_OF_EXPERTS):
        paths = ", ".join(path_of(layer) for layer in module.layers if layer is not None)
        raise NotSupportedError(
            f"The LoRA of {paths} can't be given to `peft`, which takes {name!r} for experts. Name "
            "the layers of attention in `target_names`, or use save_lora_weights, or "
            "save_to_preset for the merged weights."
        )


@dataclass(frozen=True)
class _Module:
    """A `Linear` of `transformers`: its entry, and the layers of this package by their kernels."""

    entry: CheckpointEntry
    layers_of: Mapping[int, keras.Layer]

    @property
    def layers(self) -> list[keras.Layer | None]:
        return [self.layers_of.get(id(variable)) for variable in self.entry.variables]

    @property
    def layout(self) -> LinearLayout:
        count = self.entry.num_input_axes or 1
        shapes = [tuple(variable.shape) for variable in self.entry.variables]
        return LinearLayout(
            math.prod(shapes[0][:count]),
            math.prod(shapes[0][count:-1]),
            tuple(shape[-1] for shape in shapes),
        )

    @property
    def scale(self) -> float:
        first = next(layer for layer in self.layers if layer is not None)
        return float(first.lora_alpha / first.lora_rank)

    def read(self, scale: float) -> list[Factors | None]:
        return [None if layer is None else self._read(layer, scale) for layer in self.layers]

    def _read(self, layer: keras.Layer, scale: float) -> Factors:
        a, b = (keras.ops.convert_to_numpy(each.value) for each in lora_variables(layer))
        if self.entry.num_input_axes is None:  # Its rows are in another order in the file.
            a = np.asarray(self.entry.to_tensors([a])[0]).T
        shape = (self.layout.num_inputs, self.layout.num_blocks, -1)
        return a.reshape(shape), b * np.float32(layer.lora_alpha / layer.lora_rank / scale)

    def split(
        self, down: Array, up: Array, scale: float, *, is_there: bool
    ) -> dict[str, LayerAdapter] | None:
        """Returns the adapters by the paths of the layers; `None` where these can't have them."""
        has_lora = [layer is not None for layer in self.layers]
        expected = self.entry.tensor_shapes()[0]
        if (up.shape[0], down.shape[-1]) != expected or up.shape[-1] != down.shape[0]:
            first = next(layer for layer in self.layers if layer is not None)
            return {path_of(first): LayerAdapter(down.T, up.T, scale)}  # Named as what fits not.
        choices = [has_lora]
        if not is_there:  # Kernels that have no share in it may have had no LoRA.
            layout = self.layout
            rows = up.reshape(layout.num_blocks, -1, up.shape[-1])
            choices.append(
                [
                    bool(rows[:, offset : offset + width].any())
                    for offset, width in zip(layout.offsets, layout.widths, strict=True)
                ]
            )
        for choice in choices:
            parts = split_factors(self.layout, down, up, choice) if any(choice) else None
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


def _read_pairs(folder: Path) -> dict[str, tuple[Array, Array]]:
    """Returns `lora_A` and `lora_B` of each module."""
    tensors = read_tensors(folder / _WEIGHTS_NAME)
    names = {name.removeprefix(_PREFIX).removesuffix(end) for name in tensors for end in _SUFFIXES}
    names = {name for name in names if not name.endswith(".weight")}
    expected = {f"{_PREFIX}{name}{end}" for name in names for end in _SUFFIXES}
    if not names or expected != set(tensors):
        wrong = sorted(expected ^ set(tensors))[:5]
        raise CheckpointError(
            f"{str(folder)!r} holds no LoRA of `Linear`s alone: {', '.join(wrong) or 'nothing'} is "
            "too much or missing."
        )
    return {
        name: (tensors[f"{_PREFIX}{name}{_SUFFIXES[0]}"], tensors[f"{_PREFIX}{name}{_SUFFIXES[1]}"])
        for name in sorted(names)
    }


def _make_config(modules: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": min(rank for rank, _ in modules.values()),
        "lora_alpha": min(alpha for _, alpha in modules.values()),
        "rank_pattern": {re.escape(name): rank for name, (rank, _) in modules.items()},
        "alpha_pattern": {re.escape(name): alpha for name, (_, alpha) in modules.items()},
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _check_config(config: Mapping[str, Any]) -> None:
    plain: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "fan_in_fan_out": (False, None),
        "modules_to_save": (None, []),
    }
    for name, allowed in plain.items():
        if config.get(name) not in allowed:
            raise NotSupportedError(
                f"`{name}` of {_CONFIG_NAME} must be {allowed[0]!r}, received "
                f"{config.get(name)!r}: only a plain LoRA is read. Merge it in `peft` "
                "(merge_and_unload), and read that checkpoint."
            )


def _scale_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)  # What `peft` has by default.
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

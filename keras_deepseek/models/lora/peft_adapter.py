"""Saving and loading of the LoRA of a language model as a `peft` adapter folder."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.checks import check_path
from keras_deepseek.errors import CheckpointError, InvalidInputError, NotSupportedError
from keras_deepseek.models.checkpoints.preset_folder import new_folder, read_json, write_json
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.checkpoints.weights_writer import write_tensors
from keras_deepseek.models.families import FAMILIES
from keras_deepseek.models.lora.adapted_layers import (
    find_adapted,
    find_candidates,
    kernel_of,
    path_of,
)
from keras_deepseek.models.lora.lora_weights import LayerAdapter, assign_adapters, read_tensors
from keras_deepseek.models.lora.low_rank_adaptation import check_lora
from keras_deepseek.models.lora.peft_experts import (
    PeftExperts,
    find_experts,
    take_experts,
    tensor_name,
)
from keras_deepseek.models.lora.peft_modules import PeftEmbedding, PeftLinear, find_modules

_CONFIG_NAME, _WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MOST_NAMES = 5  # In an error.
_NAMES_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
_ARCHITECTURES_OF_EXPERTS = frozenset(
    name for family in FAMILIES if family.peft_adapts_experts for name in family.architectures
)
"""Adapters that `peft` wrote on transformers 4 may hold their dense layers, and are read."""

PeftModule = PeftLinear | PeftEmbedding | PeftExperts


def save_peft_adapter(model: PresetModel, folder: str | os.PathLike[str]) -> None:
    """Writes the LoRA of a language model as a folder that `peft` loads onto `transformers`' model.

    Choose it to use the LoRA in PyTorch. The tensor names fit the checkpoint that `save_to_preset`
    writes, and the logits are the same.

    Keras's LoRA of a projection to heads (`query_up`, `key_up`, `value_up`) has a matrix for each
    head. The folder holds one matrix of `num_heads` times the rank instead, unless
    `load_peft_adapter` read the LoRA and it was not trained since. The LoRA of routed experts is
    written as one of `target_parameters`. For DeepSeek-V2 to V3.2, `peft` takes all other
    feed-forward layers for experts: give `enable_lora` the names of attention layers and routed
    experts, and `"token_embedding"` if the logits have weights of their own.

    Args:
        model: Language model of this package that has a LoRA.
        folder: Path of the folder. An adapter there is replaced.

    Raises:
        InvalidInputError: The model has no LoRA, or its family has no checkpoint map.
        NotSupportedError: `peft` can't represent the LoRA of a layer, or the model is quantized to
            int4.
        CheckpointError: The folder holds other files, or can't be written.
        PeerLostError: Another process has ended, or does not answer.

    Example:

    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from keras_deepseek.models import DeepSeekV2CausalLM, DeepSeekV2Config
    >>> from keras_deepseek.models import enable_lora, save_peft_adapter
    >>> model = DeepSeekV2CausalLM(DeepSeekV2Config.from_preset("tiny"))
    >>> names = enable_lora(model, rank=2, target_names=["query_up", "output"])
    >>> with TemporaryDirectory() as folder:
    ...     save_peft_adapter(model, folder)
    ...     sorted(os.listdir(folder))
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    adapted = {id(kernel_of(layer)): layer for layer in check_lora(model)}
    peft_modules: dict[str, PeftModule] = {
        **find_modules(_check_model(model), adapted),
        **find_experts(model, adapted),
    }
    _check_written(model, peft_modules, adapted.values())
    arrays: dict[str, Array] = {}
    modules: dict[str, tuple[int, float]] = {}
    for name, module in peft_modules.items():
        factors = module.join()
        rank = len(factors[0]) // module.num_experts
        modules[name] = (rank, module.scale * rank)
        tensor = f"{_PREFIX}{tensor_name(name, peft_modules)}"
        arrays |= {f"{tensor}{end}": x for end, x in zip(module.suffixes, factors, strict=True)}
    if backend.current().distribution.process_rank() > 0:
        return
    with new_folder(folder, (_CONFIG_NAME, _WEIGHTS_NAME), _CONFIG_NAME) as work:
        write_json(work, _CONFIG_NAME, _make_config(modules))
        write_tensors(work / _WEIGHTS_NAME, {n: np.ascontiguousarray(x) for n, x in arrays.items()})


def load_peft_adapter(model: PresetModel, folder: str | os.PathLike[str]) -> None:
    """Reads a LoRA that `save_peft_adapter` or `peft` wrote for such a model.

    Choose it to go on with a LoRA that was trained in PyTorch. If the model has no LoRA, one is
    added, and everything else is frozen. Adapters of the token embedding and of routed experts are
    read too, and those of dense feed-forward layers and shared experts, which `peft` wrote on
    earlier releases of transformers.

    For a projection to heads (`q_b_proj`, `kv_b_proj`, `q_proj` without query compression), `peft`
    has one A for all heads, and Keras one for each head. The rank here is then `num_heads` times as
    large, or the width of a head if that is less.

    Args:
        model: Language model of this package.
        folder: Path of a folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        InvalidInputError: The adapter belongs to another model, or differs from the model's own
            LoRA.
        NotSupportedError: It is not a plain LoRA of `Linear`s, embeddings and experts, or it adapts
            routers or some experts of a layer alone; or the model is quantized to int4.
        CheckpointError: A file is missing or damaged.

    Example:

    >>> from tempfile import TemporaryDirectory
    >>> from keras_deepseek.models import DeepSeekV2CausalLM, DeepSeekV2Config
    >>> from keras_deepseek.models import enable_lora, load_peft_adapter, save_peft_adapter
    >>> config = DeepSeekV2Config.from_preset("tiny")
    >>> tuned, model = DeepSeekV2CausalLM(config), DeepSeekV2CausalLM(config)
    >>> names = enable_lora(tuned, rank=2, target_names=["output"])
    >>> with TemporaryDirectory() as folder:
    ...     save_peft_adapter(tuned, folder)
    ...     load_peft_adapter(model, folder)
    >>> len(model.trainable_variables) == len(tuned.trainable_variables)
    True
    """
    path = Path(check_path("folder", folder))
    config = read_json(path, _CONFIG_NAME)
    _check_config(config)
    layers = {id(kernel_of(layer)): layer for layer in find_adapted(model)}
    has_lora = bool(layers)
    layers = layers or {id(kernel_of(layer)): layer for layer in find_candidates(model)}
    modules: dict[str, PeftModule] = {**find_modules(_check_model(model), layers)}
    pairs = _read_pairs(path, modules)
    experts = find_experts(model, layers, by_projection=True)
    modules |= experts
    pairs |= take_experts(pairs, experts)
    adapters: dict[str, LayerAdapter] = {}
    refused = []
    for name, (down, up) in pairs.items():
        if name not in modules and _is_of_experts(name):
            refused.append(name)
        elif name not in modules:
            adapters[name] = LayerAdapter(down, up, 1.0)  # `assign_adapters` reports it as unknown.
        else:
            scale = _scale_of(config, name, len(down) // modules[name].num_experts)
            read = modules[name].split(down, up, scale, is_enabled=has_lora)
            if read is None:  # The kernels of the module can't all have it.
                refused.append(name)
            else:
                adapters |= read
    if refused:
        raise NotSupportedError(
            f"{str(path)!r} has a LoRA of {', '.join(refused[:_MOST_NAMES])} that Keras layers "
            "can't have. Routers can't have one, nor some experts of a layer alone, nor a module "
            "whose kernels are partly frozen. Merge it in `peft` (merge_and_unload), or leave "
            "these out of its target_modules."
        )
    assign_adapters(model, adapters, str(path))


def _is_of_experts(name: str) -> bool:
    return "experts" in name.split(".") or name.endswith(".mlp.gate")


def _check_model(model: Any) -> PresetModel:
    # A family without a checkpoint map has no module names of `transformers`.
    if not isinstance(model, PresetModel) or (
        type(model).checkpoint_entries is PresetModel.checkpoint_entries
    ):
        raise InvalidInputError(
            "`model` must be a language model of this package that `transformers` has too, "
            f"received a `{type(model).__name__}`. Use save_lora_weights and load_lora_weights."
        )
    if any(layer.quantization_mode == "int4" for layer in flatten_layers(model)):
        raise NotSupportedError(  # Its kernels have other shapes than the modules of `peft`.
            f"{model.name!r} is quantized to int4: write its LoRA by save_lora_weights, load that "
            "into the model before `quantize`, and exchange it with `peft` there. Adapters of "
            "`peft` go the other way."
        )
    return model


def _check_written(
    model: PresetModel, modules: Mapping[str, PeftModule], adapted: Iterable[keras.Layer]
) -> None:
    written_ids = {id(layer) for module in modules.values() for layer in module.layers}
    unwritten = [path_of(layer) for layer in adapted if id(layer) not in written_ids]
    if unwritten:
        raise NotSupportedError(
            f"The LoRA of {', '.join(unwritten)} can't be written for `peft`. It has no LoRA for "
            "grouped projections, and for an embedding that also makes the logits it adapts only "
            "one of the two. Leave them out of `target_names`, or use save_lora_weights."
        )
    if model.architectures[0] not in _ARCHITECTURES_OF_EXPERTS:
        return
    for name, module in modules.items():
        if name.endswith(_NAMES_OF_EXPERTS) and not _is_of_experts(name):
            paths = ", ".join(path_of(layer) for layer in module.layers if layer is not None)
            raise NotSupportedError(
                f"The LoRA of {paths} can't be written for `peft`, which treats {name!r} as "
                "experts. Name only attention layers in `target_names`, or use save_lora_weights, "
                "or save_to_preset for the merged weights."
            )


def _read_pairs(folder: Path, modules: Mapping[str, PeftModule]) -> dict[str, tuple[Array, Array]]:
    """Reads `lora_A` and `lora_B` of each module, by its `transformers` name."""
    tensors = read_tensors(folder / _WEIGHTS_NAME)
    ends = {}  # The two suffixes of a module's tensors, by its name.
    for tensor in tensors:
        for suffixes in (PeftLinear.suffixes, PeftEmbedding.suffixes):
            if tensor.endswith(suffixes):
                name = tensor.removeprefix(_PREFIX)
                ends[name.removesuffix(suffixes[0]).removesuffix(suffixes[1])] = suffixes
    expected = {f"{_PREFIX}{name}{end}" for name, pair in ends.items() for end in pair}
    # The adapter of an embedding includes a copy of the table, which was not trained.
    copies = {f"{_PREFIX}{name}.base_layer.weight" for name in ends if name in modules}
    if not ends or expected != set(tensors) - copies:
        wrong = sorted(expected ^ set(tensors))[:_MOST_NAMES]
        raise CheckpointError(
            f"{str(folder)!r} must hold only a LoRA of `Linear`s and embeddings. Unexpected or "
            f"missing tensors: {', '.join(wrong) or 'there are none at all'}."
        )
    for name in copies & set(tensors):
        _check_copy(name, tensors[name], modules)
    return {
        name: (tensors[f"{_PREFIX}{name}{first}"], tensors[f"{_PREFIX}{name}{second}"])
        for name, (first, second) in sorted(ends.items())
    }


def _check_copy(name: str, table: Array, modules: Mapping[str, PeftModule]) -> None:
    module = modules[name.removeprefix(_PREFIX).removesuffix(".base_layer.weight")]
    ours = [keras.ops.convert_to_numpy(kernel_of(x).value) for x in module.layers if x is not None]
    if len(ours) != 1 or not np.array_equal(ours[0].astype(table.dtype), table):
        raise InvalidInputError(
            f"The adapter also holds the weights {name!r}, and they differ from the model's: it "
            "was trained on another model, or with added tokens. Use the model it belongs to."
        )


def _make_config(modules: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    experts = sorted(name for name in modules if _is_of_experts(name))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": min(rank for rank, _ in modules.values()),
        "lora_alpha": min(alpha for _, alpha in modules.values()),
        "rank_pattern": {re.escape(name): rank for name, (rank, _) in modules.items()},
        "alpha_pattern": {re.escape(name): alpha for name, (_, alpha) in modules.items()},
        "target_modules": sorted(set(modules) - set(experts)),
        **({"target_parameters": experts} if experts else {}),
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
                f"{config.get(name)!r}: only a plain LoRA is supported. Merge it in `peft` "
                "(merge_and_unload), and read that checkpoint."
            )


def _scale_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)  # The default of `peft`.
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

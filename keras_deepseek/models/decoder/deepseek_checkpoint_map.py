"""The checkpoint map of DeepSeek-V2, V3 and V3.2, which share their tensor names.

Modules that predict further tokens come after the layers, each as one more layer. In a checkpoint
each has a copy of the embedding and of the head, which the model has once. Some checkpoints that
others derived from a release have no copies.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import CheckpointError
from keras_deepseek.layers import DeepSeekMoE, DeepSeekSparseAttention, MultiTokenPrediction
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.checkpoints.checkpoint_entry import (
    CheckpointEntry,
    copied_entry,
    kernel_entry,
    split_kernel_entry,
    stacked_entry,
)
from keras_deepseek.models.checkpoints.merged_kernels import own_variable
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig

FLOAT32_TENSORS = ("*.e_score_correction_bias",)
"""Patterns of tensors that are always written in float32. DeepSeek-V2 has none."""

_MOST_MODULES = 8
"""More modules than any checkpoint has. Published ones have one."""


def deepseek_entries(model: CausalLM, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
    """Returns the checkpoint map of a model with a `DeepSeekConfig`.

    `tensors` are the names of all tensors in the checkpoint that is read; empty for writing. Copies
    that it does not have are left out.
    """
    backbone = model.backbone
    _check_num_layers(model.config, tensors)
    entries = _embedding_entries(model, tensors)
    for index, block in enumerate(backbone.transformer_layers):
        entries += block_entries(block, f"model.layers.{index}")
    entries.append(copied_entry(backbone.final_norm.scale, "model.norm.weight"))
    if model.multi_token_prediction is not None:
        entries += _prediction_entries(
            model.multi_token_prediction, len(backbone.transformer_layers)
        )
    return entries


def unread_tensors(config: DeepSeekConfig) -> tuple[str, ...]:
    """Returns name patterns of tensors that a checkpoint may have and the model ignores.

    They are the rotary angles in older checkpoints, and modules that predict further tokens.
    """
    first = _num_read_layers(config)
    modules = [f"model.layers.{index}.*" for index in range(first, first + _MOST_MODULES)]
    return ("*.rotary_emb.inv_freq", *modules)


def _num_read_layers(config: DeepSeekConfig) -> int:
    return config.num_layers + config.num_prediction_layers


def _check_num_layers(config: DeepSeekConfig, tensors: Collection[str]) -> None:
    """Raises an error if a checkpoint goes on with a layer that predicts no further token."""
    prefix = f"model.layers.{_num_read_layers(config)}."
    names = [name for name in tensors if name.startswith(prefix)]
    if names and f"{prefix}eh_proj.weight" not in names:
        raise CheckpointError(
            f"The checkpoint has more layers than its config, which has {config.num_layers}, and "
            f"nothing was loaded: it holds {min(names)!r}. Correct num_hidden_layers in "
            "config.json, or the argument num_layers."
        )


def _prediction_prefixes(model: CausalLM) -> list[str]:
    first, count = model.config.num_layers, model.config.num_prediction_layers
    return [f"model.layers.{index}" for index in range(first, first + count)]


def _embedding_entries(model: CausalLM, tensors: Collection[str]) -> list[CheckpointEntry]:
    """Returns the entries of the token embedding and the head; a file repeats both by module."""
    embedding, prefixes = model.backbone.token_embedding, _prediction_prefixes(model)
    copies, heads = (
        [name for name in names if name in tensors or not tensors]
        for names in (
            [f"{prefix}.embed_tokens.weight" for prefix in prefixes],
            [f"{prefix}.shared_head.head.weight" for prefix in prefixes],
        )
    )
    table = own_variable(embedding, "embeddings")
    if embedding.tie_weights:
        entry = _repeated_entry(table, ["model.embed_tokens.weight", *copies, *heads])
        return [replace(entry, copies=("lm_head.weight",))]
    return [
        _repeated_entry(table, ["model.embed_tokens.weight", *copies]),
        _repeated_entry(embedding.reverse_embeddings, ["lm_head.weight", *heads], is_kernel=True),
    ]


def _repeated_entry(
    variable: Any, tensors: Sequence[str], *, is_kernel: bool = False
) -> CheckpointEntry:
    """Returns the checkpoint entry of a variable that is stored several times.

    The first tensor is read, and all are written.
    """

    def transpose(array: Array) -> Array:
        return array.T if is_kernel else array

    return CheckpointEntry(
        (variable,),
        tuple(tensors),
        lambda arrays: [transpose(arrays[0])],
        lambda arrays: [transpose(arrays[0])] * len(tensors),
    )


def _prediction_entries(prediction: MultiTokenPrediction, first: int) -> list[CheckpointEntry]:
    """Returns the entries of modules, which the file has as further layers from number `first`."""
    entries = []
    for index, block in enumerate(prediction.blocks):
        prefix = f"model.layers.{first + index}"
        norms = {
            "hnorm": prediction.hidden_norms,
            "enorm": prediction.embedding_norms,
            "shared_head.norm": prediction.output_norms,
        }
        entries += [
            copied_entry(layers[index].scale, f"{prefix}.{name}.weight")
            for name, layers in norms.items()
        ]
        entries.append(
            _swapped_entry(own_variable(prediction.projections[index]), f"{prefix}.eh_proj.weight")
        )
        entries += block_entries(block, prefix)
    return entries


def _swapped_entry(kernel: Any, tensor: str) -> CheckpointEntry:
    """Returns the checkpoint entry of a kernel whose two halves of rows are swapped in the file."""
    half = kernel.shape[0] // 2

    def swap_halves(array: Array) -> Array:
        return np.concatenate([array[half:], array[:half]])

    return CheckpointEntry(
        (kernel,),
        (tensor,),
        lambda arrays: [swap_halves(arrays[0].T)],
        lambda arrays: [swap_halves(arrays[0]).T],
    )


def block_entries(block: DecoderBlock, prefix: str) -> list[CheckpointEntry]:
    """Returns the checkpoint entries of one block with latent attention.

    `prefix` has no final dot.
    """
    entries = [
        copied_entry(block.attention_norm.scale, f"{prefix}.input_layernorm.weight"),
        copied_entry(block.feed_forward_norm.scale, f"{prefix}.post_attention_layernorm.weight"),
        *_attention_entries(block.attention, f"{prefix}.self_attn"),
    ]
    if isinstance(block.feed_forward, DeepSeekMoE):
        return [*entries, *_mixture_entries(block.feed_forward, f"{prefix}.mlp")]
    return [*entries, *_feed_forward_entries(block.feed_forward, f"{prefix}.mlp")]


def _attention_entries(attention: Any, prefix: str) -> list[CheckpointEntry]:
    """Returns the entries of a `MultiHeadLatentAttention`, whose tensors begin with `prefix`."""
    query = f"{prefix}.q_proj"
    entries = []
    if attention.query_lora_rank is not None:
        query = f"{prefix}.q_b_proj"
        entries += [
            kernel_entry(own_variable(attention.query_down), f"{prefix}.q_a_proj.weight"),
            copied_entry(attention.query_norm.scale, f"{prefix}.q_a_layernorm.weight"),
        ]
        if attention.use_bias:
            entries.append(copied_entry(attention.query_down.bias, f"{prefix}.q_a_proj.bias"))
    # The checkpoint joins compressed keys and values with the rotary key.
    downs, down = (attention.key_value_down, attention.key_rope), f"{prefix}.kv_a_proj_with_mqa"
    entries += [
        kernel_entry(own_variable(attention.query_up), f"{query}.weight"),
        split_kernel_entry([own_variable(layer) for layer in downs], f"{down}.weight"),
        copied_entry(attention.key_value_norm.scale, f"{prefix}.kv_a_layernorm.weight"),
        split_kernel_entry(
            [own_variable(layer) for layer in (attention.key_up, attention.value_up)],
            f"{prefix}.kv_b_proj.weight",
        ),
        kernel_entry(
            own_variable(attention.output_projection), f"{prefix}.o_proj.weight", num_input_axes=2
        ),
    ]
    if attention.use_bias:
        entries += [
            _joined_entry([layer.bias for layer in downs], f"{down}.bias"),
            copied_entry(attention.output_projection.bias, f"{prefix}.o_proj.bias"),
        ]
    if isinstance(attention, DeepSeekSparseAttention):
        entries += _indexer_entries(attention.indexer, prefix)
    return entries


def _joined_entry(variables: Sequence[Any], tensor: str) -> CheckpointEntry:
    """Returns the checkpoint entry of several vectors that the file stores as one tensor."""
    bounds = np.cumsum([variable.shape[0] for variable in variables])[:-1]
    return CheckpointEntry(
        tuple(variables),
        (tensor,),
        lambda arrays: np.split(arrays[0], bounds),
        lambda arrays: [np.concatenate(arrays)],
    )


def _indexer_entries(indexer: Any, prefix: str) -> list[CheckpointEntry]:
    return [
        kernel_entry(own_variable(indexer.query_up), f"{prefix}.indexer.wq_b.weight"),
        kernel_entry(own_variable(indexer.key), f"{prefix}.indexer.wk.weight"),
        copied_entry(indexer.key_norm.gamma, f"{prefix}.indexer.k_norm.weight"),
        copied_entry(indexer.key_norm.beta, f"{prefix}.indexer.k_norm.bias"),
        kernel_entry(own_variable(indexer.head_weight), f"{prefix}.indexer.weights_proj.weight"),
    ]


def _feed_forward_entries(feed_forward: Any, prefix: str) -> list[CheckpointEntry]:
    return [
        kernel_entry(own_variable(getattr(feed_forward, name)), f"{prefix}.{name}_proj.weight")
        for name in ("gate", "up", "down")
    ]


def _mixture_entries(mixture: DeepSeekMoE, prefix: str) -> list[CheckpointEntry]:
    router = mixture.router
    entries = [kernel_entry(router.kernel, f"{prefix}.gate.weight")]
    if router.expert_bias is not None:
        entries.append(copied_entry(router.expert_bias, f"{prefix}.gate.e_score_correction_bias"))
    experts = [f"{prefix}.experts.{index}" for index in range(router.num_experts)]
    entries += [
        stacked_entry(
            getattr(mixture, f"{name}_kernel"),
            [f"{expert}.{name}_proj.weight" for expert in experts],
        )
        for name in ("gate", "up", "down")
    ]
    if mixture.shared_experts is not None:
        entries += _feed_forward_entries(mixture.shared_experts, f"{prefix}.shared_experts")
    return entries

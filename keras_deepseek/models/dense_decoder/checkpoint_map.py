"""The checkpoint map of Llama, Qwen2 and Qwen3, which share their tensor names."""

from typing import Any

import keras

from keras_deepseek.models.checkpoints.checkpoint_entry import (
    CheckpointEntry,
    copied_entry,
    kernel_entry,
)
from keras_deepseek.models.checkpoints.merged_kernels import own_variable

IGNORED_TENSORS = ("*.rotary_emb.inv_freq",)
"""Patterns of tensors in older checkpoints that are not read: the rotary angles."""


def checkpoint_entries(backbone: Any) -> list[CheckpointEntry]:
    """Returns the checkpoint map of a language model with a dense backbone."""
    embedding = backbone.token_embedding
    copies = ("lm_head.weight",) if embedding.tie_weights else ()
    table = own_variable(embedding, "embeddings")
    entries = [copied_entry(table, "model.embed_tokens.weight", copies=copies)]
    if not embedding.tie_weights:
        entries.append(kernel_entry(embedding.reverse_embeddings, "lm_head.weight"))
    for index, block in enumerate(backbone.transformer_layers):
        entries += _block_entries(block, f"model.layers.{index}")
    return [*entries, copied_entry(backbone.final_norm.scale, "model.norm.weight")]


def _block_entries(block: Any, prefix: str) -> list[CheckpointEntry]:
    attention, feed_forward = block.attention, block.feed_forward
    norms = {
        "input_layernorm": block.attention_norm,
        "post_attention_layernorm": block.feed_forward_norm,
    }
    if attention.use_query_key_norm:
        norms |= {"self_attn.q_norm": attention.query_norm, "self_attn.k_norm": attention.key_norm}
    projections = {
        "self_attn.q_proj": attention.query,
        "self_attn.k_proj": attention.key,
        "self_attn.v_proj": attention.value,
        "self_attn.o_proj": attention.output_projection,
        "mlp.gate_proj": feed_forward.gate,
        "mlp.up_proj": feed_forward.up,
        "mlp.down_proj": feed_forward.down,
    }
    entries = [copied_entry(norm.scale, f"{prefix}.{name}.weight") for name, norm in norms.items()]
    for name, projection in projections.items():
        entries += _dense_entries(projection, f"{prefix}.{name}")
    return entries


def _dense_entries(dense: keras.layers.Dense, prefix: str) -> list[CheckpointEntry]:
    entries = [kernel_entry(own_variable(dense), f"{prefix}.weight")]
    if dense.bias is not None:
        entries.append(copied_entry(dense.bias, f"{prefix}.bias"))
    return entries

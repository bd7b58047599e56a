"""The checkpoint map of DeepSeek-V4: its variables, and their tensor names.

It writes the tensor names of DeepSeek's release, which transformers reads. Transformers has other
names for its modules, in which the experts are stacked in two tensors instead of three for each
expert. By default it writes names of the release mixed with some of its own, because it reverses
its renaming. All three sets of names are read.
"""

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.layers import (
    CompressedSparseAttention,
    HashRouter,
    HeavilyCompressedAttention,
)
from keras_deepseek.models.checkpoints.checkpoint_entry import (
    CheckpointEntry,
    copied_entry,
    kernel_entry,
    rename_tensors,
    stacked_entry,
)
from keras_deepseek.models.checkpoints.merged_kernels import own_variable

Entries = list[CheckpointEntry]
Names = tuple[str, str]
"""The names of one tensor: in the release, and in transformers."""

FLOAT32_TENSORS = ("*hc_*", "*.attn_sink", "*.ape", "*.gate.bias")
"""Patterns of tensors that the release always has in float32."""

COPIED_TENSORS = ("mtp.*.emb.tok_emb.weight", "mtp.*.head.weight")
"""Copies of the embedding and the head that some files have for further layers."""

_RELEASE, _TRANSFORMERS = 0, 1

_EMBEDDING: Names = ("embed.weight", "model.embed_tokens.weight")
_HEAD: Names = ("head.weight", "lm_head.weight")
_FINAL_NORM: Names = ("norm.weight", "model.norm.weight")
_COLLAPSE: Names = ("hc_head_", "model.hc_head.hc_")
_LAYER: Names = ("layers.{}.", "model.layers.{}.")
_FURTHER: Names = ("mtp.{}.", "mtp.{}.")
"""transformers has no layers that predict further tokens, and ignores their tensors."""


def _output_down_entry(variable: keras.Variable, tensor: str) -> CheckpointEntry:
    """Returns the checkpoint entry of kernels `(groups, inputs, rank)`.

    The file stores them as `(groups * rank, inputs)`.
    """
    groups, inputs, rank = variable.shape

    def to_variables(arrays: Sequence[Array]) -> list[Array]:
        return [arrays[0].reshape(groups, rank, inputs).swapaxes(1, 2)]

    def to_tensors(arrays: Sequence[Array]) -> list[Array]:
        return [arrays[0].swapaxes(1, 2).reshape(groups * rank, inputs)]

    return CheckpointEntry((variable,), (tensor,), to_variables, to_tensors)


def _output_entry(variable: keras.Variable, tensor: str) -> CheckpointEntry:
    return kernel_entry(variable, tensor, num_input_axes=2)


_ATTENTION = (
    ("query_down.kernel", "wq_a.weight", "q_a_proj.weight", kernel_entry),
    ("query_norm.scale", "q_norm.weight", "q_a_norm.weight", copied_entry),
    ("query_up.kernel", "wq_b.weight", "q_b_proj.weight", kernel_entry),
    ("key_value.kernel", "wkv.weight", "kv_proj.weight", kernel_entry),
    ("key_value_norm.scale", "kv_norm.weight", "kv_norm.weight", copied_entry),
    ("sinks", "attn_sink", "sinks", copied_entry),
    ("output_down.kernel", "wo_a.weight", "o_a_proj.weight", _output_down_entry),
    ("output_projection.kernel", "wo_b.weight", "o_b_proj.weight", _output_entry),
)
_COMPRESSOR = (
    ("value.kernel", "wkv.weight", "kv_proj.weight", kernel_entry),
    ("gate.kernel", "wgate.weight", "gate_proj.weight", kernel_entry),
    ("position_bias", "ape", "position_bias", copied_entry),
    ("norm.scale", "norm.weight", "kv_norm.weight", copied_entry),
)
_INDEXER = (
    ("query_up.kernel", "wq_b.weight", "q_b_proj.weight", kernel_entry),
    ("head_weight.kernel", "weights_proj.weight", "scorer.weights_proj.weight", kernel_entry),
)
_STREAMS = (
    ("kernel", "fn", "fn", kernel_entry),
    ("bias", "base", "base", copied_entry),
    ("scale", "scale", "scale", copied_entry),
)
_SHARED = (
    ("gate.kernel", "w1.weight", "gate_proj.weight", kernel_entry),
    ("up.kernel", "w3.weight", "up_proj.weight", kernel_entry),
    ("down.kernel", "w2.weight", "down_proj.weight", kernel_entry),
)
_NORMS = (
    ("attention_norm.scale", "attn_norm.weight", "input_layernorm.weight", copied_entry),
    ("feed_forward_norm.scale", "ffn_norm.weight", "post_attention_layernorm.weight", copied_entry),
)
_Table = Sequence[tuple[str, str, str, Callable[[keras.Variable, str], CheckpointEntry]]]


def checkpoint_entries(model: Any, tensors: Collection[str] = ()) -> Entries:
    """Returns the checkpoint map of a `DeepSeekV4CausalLM`, in the names of a given checkpoint.

    `tensors`, the names of all tensors in the checkpoint that is read, show its set of names. Empty
    for writing: the names of the release.
    """
    if any(".self_attn." in name for name in tensors):
        return module_entries(model)
    return rename_tensors(_list_entries(model, _RELEASE), tensors, _candidate_names)


def module_entries(model: Any) -> Entries:
    """Returns the checkpoint map of a DeepSeek-V4 model in the module names of `transformers`."""
    return _list_entries(model, _TRANSFORMERS)


def _candidate_names(name: str) -> Sequence[str]:
    """Returns a tensor's name in DeepSeek's release, then the names that transformers writes."""
    if name in _HEAD:
        return _HEAD
    written = {names[_RELEASE]: names[_TRANSFORMERS] for names in (_EMBEDDING, _FINAL_NORM)}
    if name.startswith(_COLLAPSE[_RELEASE]):
        return name, name.replace(*_COLLAPSE)
    inner = written.get(name, f"model.{name}")
    return name, inner, inner.replace(".attn.kv_norm.", ".attn.norm.")


def _list_entries(model: Any, side: int) -> Entries:
    """Returns the entries of a model; `side`, here and below, is `_RELEASE` or `_TRANSFORMERS`."""
    backbone = model.backbone
    embedding = backbone.token_embedding
    heads = _HEAD if embedding.tie_weights else ()
    entries = [
        copied_entry(own_variable(embedding, "embeddings"), _EMBEDDING[side], copies=heads),
        copied_entry(backbone.final_norm.scale, _FINAL_NORM[side]),
        *_read_table(_STREAMS, backbone.collapse, _COLLAPSE[side], side),
    ]
    if not embedding.tie_weights:
        table = own_variable(embedding, "reverse_embeddings")
        entries.append(kernel_entry(table, _HEAD[side]))
    for index, layer in enumerate(backbone.transformer_layers):
        entries += _layer_entries(layer, _LAYER[side].format(index), side)
    if model.multi_token_prediction is not None:
        entries += _further_entries(model.multi_token_prediction)
    return entries


def _read_table(table: _Table, layer: Any, prefix: str, side: int) -> Entries:
    """Returns an entry for each row of a table: a path from `layer`, two names, and a maker."""
    entries = []
    for path, *names, make in table:
        attribute, _, name = path.rpartition(".")
        inner = operator.attrgetter(attribute)(layer) if attribute else layer
        entries.append(make(own_variable(inner, name), prefix + names[side]))
    return entries


def _layer_entries(layer: Any, prefix: str, side: int) -> Entries:
    attention, streams = layer.attention, (layer.attention_streams, layer.feed_forward_streams)
    kinds = ("hc_attn_", "attn_hc."), ("hc_ffn_", "ffn_hc.")
    attention_prefix = prefix + ("attn.", "self_attn.")[side]
    entries = _read_table(_NORMS, layer, prefix, side)
    entries += _read_table(_ATTENTION, attention, attention_prefix, side)
    for mixed, names in zip(streams, kinds, strict=True):
        entries += _read_table(_STREAMS, mixed, prefix + names[side], side)
    if isinstance(attention, CompressedSparseAttention | HeavilyCompressedAttention):
        entries += _read_table(
            _COMPRESSOR, attention.compressor, f"{attention_prefix}compressor.", side
        )
    if isinstance(attention, CompressedSparseAttention):
        outer, inner = (
            ("indexer.", "indexer.compressor."),
            ("compressor.indexer.", "compressor.indexer."),
        )[side]
        entries += _read_table(_INDEXER, attention.indexer, attention_prefix + outer, side)
        entries += _read_table(
            _COMPRESSOR, attention.indexer.compressor, attention_prefix + inner, side
        )
    return entries + _expert_entries(layer.feed_forward, prefix + ("ffn.", "mlp.")[side], side)


def _expert_entries(experts: Any, prefix: str, side: int) -> Entries:
    router = experts.router
    entries = _read_table(_SHARED, experts.shared_experts, f"{prefix}shared_experts.", side)
    entries.append(kernel_entry(router.kernel, f"{prefix}gate.weight"))
    if isinstance(router, HashRouter):
        entries.append(copied_entry(router.token_to_experts, f"{prefix}gate.tid2eid"))
    else:
        name = ("bias", "e_score_correction_bias")[side]
        entries.append(copied_entry(router.expert_bias, f"{prefix}gate.{name}"))
    kernels = {"w1": experts.gate_kernel, "w3": experts.up_kernel, "w2": experts.down_kernel}
    if side == _TRANSFORMERS:
        return entries + _stacked_entries(experts, f"{prefix}experts.")
    for name, kernel in kernels.items():
        tensors = [f"{prefix}experts.{index}.{name}.weight" for index in range(kernel.shape[0])]
        entries.append(stacked_entry(kernel, tensors))
    return entries


def _stacked_entries(experts: Any, prefix: str) -> Entries:
    """Returns the entries of experts in transformers' two tensors: gate and up joined, and down."""
    gate, up, down = experts.gate_kernel, experts.up_kernel, experts.down_kernel
    width = gate.shape[-1]

    def to_variables(arrays: Sequence[Array]) -> list[Array]:
        both = arrays[0].swapaxes(1, 2)
        return [both[..., :width], both[..., width:]]

    def to_tensors(arrays: Sequence[Array]) -> list[Array]:
        return [np.concatenate(arrays, axis=-1).swapaxes(1, 2)]

    def turn(arrays: Sequence[Array]) -> list[Array]:
        return [arrays[0].swapaxes(1, 2)]

    return [
        CheckpointEntry((gate, up), (f"{prefix}gate_up_proj",), to_variables, to_tensors),
        CheckpointEntry((down,), (f"{prefix}down_proj",), turn, turn),
    ]


def _further_entries(prediction: Any) -> Entries:
    entries = []
    for index, block in enumerate(prediction.blocks):
        prefix = _FURTHER[_RELEASE].format(index)
        entries += _layer_entries(block, prefix, _RELEASE)
        entries += _read_table(_STREAMS, prediction.collapses[index], f"{prefix}hc_head_", _RELEASE)
        for layers, name, make in (
            (prediction.hidden_norms, "hnorm", copied_entry),
            (prediction.embedding_norms, "enorm", copied_entry),
            (prediction.output_norms, "norm", copied_entry),
            (prediction.hidden_projections, "h_proj", kernel_entry),
            (prediction.embedding_projections, "e_proj", kernel_entry),
        ):
            layer = layers[index]
            variable = own_variable(layer, "kernel" if make is kernel_entry else "scale")
            entries.append(make(variable, f"{prefix}{name}.weight"))
    return entries

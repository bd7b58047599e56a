"""The checkpoint map of BERT: its variables, and their tensor names in transformers."""

from collections.abc import Collection
from typing import Any

import keras

from keras_deepseek.layers import MaskedPositionHead
from keras_deepseek.models.checkpoints.checkpoint_entry import (
    CheckpointEntry,
    copied_entry,
    kernel_entry,
    rename_tensors,
    reshaped_entry,
)
from keras_deepseek.models.checkpoints.merged_kernels import own_variable

IGNORED_TENSORS = (
    "bert.pooler.*",
    "pooler.*",
    "bert.embeddings.position_ids",
    "embeddings.position_ids",
    "cls.seq_relationship.*",
)
"""Patterns of tensors in a checkpoint that are not read."""

_BIAS = "cls.predictions.bias"
_DECODER_KERNEL, _DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def checkpoint_entries(
    backbone: Any,
    head: MaskedPositionHead | None = None,
    tensors: Collection[str] = (),
) -> list[CheckpointEntry]:
    """Returns the checkpoint map of a BERT backbone and, if given, its masked-token head.

    `tensors` are the names of all tensors in the checkpoint that is read; empty for writing.
    """
    is_tied = head is not None and head.token_embedding is not None
    entries = [
        copied_entry(
            own_variable(layer, "embeddings"),
            f"bert.embeddings.{name}_embeddings.weight",
            copies=copies,
        )
        for layer, name, copies in (
            (backbone.token_embedding, "word", (_DECODER_KERNEL,) if is_tied else ()),
            (backbone.position_embedding, "position", ()),
            (backbone.segment_embedding, "token_type", ()),
        )
    ]
    entries += _norm_entries(backbone.embeddings_norm, "bert.embeddings.LayerNorm")
    for index, block in enumerate(backbone.transformer_layers):
        entries += _block_entries(block, f"bert.encoder.layer.{index}")
    entries += [] if head is None else _head_entries(head, tensors)
    return rename_tensors(entries, tensors, _candidate_names)


def _candidate_names(name: str) -> list[str]:
    """Returns all names that published BERT checkpoints use for a tensor.

    Older ones call the weights of norms `gamma` and `beta`. Checkpoints of a bare encoder lack the
    prefix `bert.`.
    """
    names = [name, name.removeprefix("bert.")]
    for new, old in _OLD_NAMES.items():
        names += [
            modern_name.removesuffix(new) + old
            for modern_name in names
            if modern_name.endswith(new)
        ]
    return names


def _block_entries(block: Any, prefix: str) -> list[CheckpointEntry]:
    attention = block.attention
    entries = []
    for name in ("query", "key", "value"):
        layer = getattr(attention, f"{name}_dense")
        path = f"{prefix}.attention.self.{name}"
        entries.append(kernel_entry(own_variable(layer), f"{path}.weight"))
        entries.append(reshaped_entry(layer.bias, f"{path}.bias", (-1,)))
    output = attention.output_dense
    path = f"{prefix}.attention.output"
    entries.append(kernel_entry(own_variable(output), f"{path}.dense.weight", num_input_axes=2))
    entries.append(copied_entry(output.bias, f"{path}.dense.bias"))
    entries += _norm_entries(block.attention_norm, f"{path}.LayerNorm")
    entries += _dense_entries(block.intermediate_dense, f"{prefix}.intermediate.dense")
    entries += _dense_entries(block.output_dense, f"{prefix}.output.dense")
    return entries + _norm_entries(block.feed_forward_norm, f"{prefix}.output.LayerNorm")


def _head_entries(head: MaskedPositionHead, tensors: Collection[str]) -> list[CheckpointEntry]:
    prefix = "cls.predictions"
    entries = _dense_entries(head.intermediate_dense, f"{prefix}.transform.dense")
    entries += _norm_entries(head.intermediate_layer_norm, f"{prefix}.transform.LayerNorm")
    if head.token_embedding is not None:
        return [*entries, copied_entry(head.bias, _BIAS, copies=(_DECODER_BIAS,))]
    # `transformers` then has the bias twice, and adds the first. Files of tied models have one.
    both = (_DECODER_BIAS, _BIAS)
    biases = tuple(name for name in both if name in tensors) or both
    return [
        *entries,
        kernel_entry(head.kernel, _DECODER_KERNEL),
        CheckpointEntry(
            (head.bias,),
            biases,
            lambda arrays: [arrays[0]],
            lambda arrays: [arrays[0]] * len(biases),
        ),
    ]


def _dense_entries(layer: keras.Layer, path: str) -> list[CheckpointEntry]:
    return [
        kernel_entry(own_variable(layer), f"{path}.weight"),
        copied_entry(layer.bias, f"{path}.bias"),
    ]


def _norm_entries(layer: keras.Layer, path: str) -> list[CheckpointEntry]:
    return [copied_entry(layer.gamma, f"{path}.weight"), copied_entry(layer.beta, f"{path}.bias")]

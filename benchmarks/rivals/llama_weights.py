"""A decoder with the variables of a Llama, to read and write its checkpoints.

Built of layers of this package and of Keras. It has no rotary positions, which have no weights: it
is for measuring checkpoints, and computes no Llama.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_deepseek.layers import (
    Add,
    Dense,
    Embedding,
    GroupQueryAttention,
    Input,
    RMSNormalization,
    SwiGLU,
)
from keras_deepseek.models.checkpoints.checkpoint_config import check_keys
from keras_deepseek.models.checkpoints.checkpoint_entry import (
    CheckpointEntry,
    copied_entry,
    kernel_entry,
)
from keras_deepseek.models.checkpoints.preset_model import PresetModel

KEYS = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "intermediate_size": "intermediate_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
}


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama."""

    vocabulary_size: int
    hidden_dim: int
    intermediate_dim: int
    num_layers: int
    num_heads: int

    @classmethod
    def from_checkpoint_config(cls, checkpoint_config: Mapping[str, Any]) -> "LlamaConfig":
        check_keys(checkpoint_config, [*KEYS, "tie_word_embeddings"])
        return cls(**{name: checkpoint_config[key] for key, name in KEYS.items()})

    def to_checkpoint_config(self) -> dict[str, Any]:
        sizes = {key: getattr(self, name) for key, name in KEYS.items()}
        return {"model_type": "llama", "tie_word_embeddings": False, **sizes}


class LlamaWeights(PresetModel):
    """The variables of a Llama in layers."""

    architectures = ("LlamaForCausalLM",)
    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig, *, dtype: Any = None, **kwargs: Any) -> None:
        head_dim = config.hidden_dim // config.num_heads
        ids = Input((None,), dtype="int32")
        embedding = Embedding(config.vocabulary_size, config.hidden_dim, dtype=dtype)
        x = embedding(ids)
        blocks = []
        for _ in range(config.num_layers):
            attention = GroupQueryAttention(
                head_dim, config.num_heads, config.num_heads, use_bias=False, dtype=dtype
            )
            block = (
                RMSNormalization(dtype=dtype),
                attention,
                RMSNormalization(dtype=dtype),
                SwiGLU(config.intermediate_dim, dtype=dtype),
            )
            normed = block[0](x)
            x = Add(dtype=dtype)([x, attention(normed, normed)])
            x = Add(dtype=dtype)([x, block[3](block[2](x))])
            blocks.append(block)
        norm = RMSNormalization(dtype=dtype)
        head = Dense(config.vocabulary_size, use_bias=False, dtype=dtype)
        super().__init__(ids, head(norm(x)), **kwargs)
        self.config = config
        self.parts = {"embedding": embedding, "norm": norm, "head": head}
        self.blocks = [list(block) for block in blocks]

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> Sequence[CheckpointEntry]:
        parts = self.parts
        entries = [
            copied_entry(parts["embedding"].embeddings, "model.embed_tokens.weight"),
            copied_entry(parts["norm"].scale, "model.norm.weight"),
            kernel_entry(parts["head"].kernel, "lm_head.weight"),
        ]
        for number, (first, attention, second, swiglu) in enumerate(self.blocks):
            prefix = f"model.layers.{number}"
            query, key, value, output = _projections(attention)
            entries += [
                copied_entry(first.scale, f"{prefix}.input_layernorm.weight"),
                copied_entry(second.scale, f"{prefix}.post_attention_layernorm.weight"),
                kernel_entry(query, f"{prefix}.self_attn.q_proj.weight"),
                kernel_entry(key, f"{prefix}.self_attn.k_proj.weight"),
                kernel_entry(value, f"{prefix}.self_attn.v_proj.weight"),
                kernel_entry(output, f"{prefix}.self_attn.o_proj.weight", num_input_axes=2),
                kernel_entry(swiglu.gate.kernel, f"{prefix}.mlp.gate_proj.weight"),
                kernel_entry(swiglu.up.kernel, f"{prefix}.mlp.up_proj.weight"),
                kernel_entry(swiglu.down.kernel, f"{prefix}.mlp.down_proj.weight"),
            ]
        return entries


def _projections(attention: keras.Layer) -> list[keras.Variable]:
    """Returns the kernels of queries, keys, values and outputs, which are in this order."""
    return list(attention.weights)

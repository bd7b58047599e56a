"""Tiny language models of transformers, by which ours are held: a table of configs a family.

A family is a few names and a table; the tests go through all of them. Sizes are odd where they can
be, so that two of them that were exchanged show.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_deepseek import models


@dataclass(frozen=True)
class Family:
    """A family of models, here and in transformers.

    Args:
        name: string. The folder of the family in `keras_deepseek.models`.
        model: string. The class of the task there.
        their_config: string. The class of the config in transformers.
        their_model: string. The class of the model in transformers.
        sizes: dict. The arguments of the config in transformers that all cases share.
        cases: dict. By name of a case the further arguments.
        sides: tuple of strings. On which sides padding is compared: those on which transformers
            computes at other places what it does without.
    """

    name: str
    model: str
    their_config: str
    their_model: str
    sizes: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sides: tuple[str, ...] = ("left", "right")

    def model_class(self) -> Any:
        return getattr(models, self.model)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
SIZES = {
    "vocab_size": 61,
    "hidden_size": 28,
    "intermediate_size": 23,
    "moe_intermediate_size": 9,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 13,
    "q_lora_rank": 11,
    "qk_nope_head_dim": 7,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
ODD = {
    "vocab_size": 37,
    "hidden_size": 21,
    "intermediate_size": 17,
    "moe_intermediate_size": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 2,
    "v_head_dim": 9,
}
LONG = {"rope_parameters": YARN}
NO_COMPRESSION = {"q_lora_rank": None}
TIED_BIASED = {"tie_word_embeddings": True, "attention_bias": True}
GROUPS = {"n_group": 4, "topk_group": 2, "n_routed_experts": 12}

# What it rotates, transformers takes for complex numbers: the sizes around must be even.
EVEN = {"qk_nope_head_dim": 8, "kv_lora_rank": 12}

V2 = Family(
    "deepseek_v2",
    "DeepSeekV2CausalLM",
    "DeepseekV2Config",
    "DeepseekV2ForCausalLM",
    {**SIZES, **EVEN},
    {
        "plain": {},
        "yarn, groups": {**LONG, **GROUPS, "topk_method": "group_limited_greedy"},
        "odd sizes, no compression": {**ODD, **EVEN, **NO_COMPRESSION},
        "tied, biased": TIED_BIASED,
        "yarn, no compression, all with experts": {
            **LONG,
            **NO_COMPRESSION,
            "first_k_dense_replace": 0,
        },
    },
)
V3 = Family(
    "deepseek_v3",
    "DeepSeekV3CausalLM",
    "DeepseekV3Config",
    "DeepseekV3ForCausalLM",
    SIZES,
    {
        "plain": {},
        "yarn, groups": {**LONG, **GROUPS},
        "odd sizes, no compression": {**ODD, **NO_COMPRESSION},
        "tied, biased, halves": {**TIED_BIASED, "rope_interleave": False},
        "without norm, no experts": {"norm_topk_prob": False, "first_k_dense_replace": 3},
    },
)
# With few heads a key is often below zero for all of them: then several have a score of just zero,
# and which of them is chosen is no one's rule.
INDEXER = {"index_topk": 5, "index_n_heads": 17, "index_head_dim": 10}
V32 = Family(
    "deepseek_v32",
    "DeepSeekV32CausalLM",
    "DeepseekV32Config",
    "DeepseekV32ForCausalLM",
    {**SIZES, **INDEXER},
    {
        "plain": {},
        "yarn, groups": {**LONG, **GROUPS},
        "odd sizes, one key": {**ODD, "index_topk": 1, "index_head_dim": 7},
        "tied, biased": TIED_BIASED,
        "as many keys as tokens": {"index_topk": 64},
        "layers by name": {"mlp_layer_types": ["sparse", "dense", "sparse"]},
    },
)
WINDOW, SPARSE, HEAVY = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)
V4_SIZES = {
    "vocab_size": 61,
    "hidden_size": 28,
    "moe_intermediate_size": 9,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 10,
    "qk_rope_head_dim": 6,
    "q_lora_rank": 11,
    "o_groups": 2,
    "o_lora_rank": 5,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "layer_types": [WINDOW, SPARSE, HEAVY],
    "mlp_layer_types": ["hash_moe", "moe", "moe"],
    "compress_rates": {SPARSE: 2, HEAVY: 5},
    "sliding_window": 4,
    "index_n_heads": 16,  # With few, all may give a score of zero: a tie.
    "index_head_dim": 8,
    "index_topk": 3,
    "hc_mult": 3,
    "hc_sinkhorn_iters": 5,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
V4_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
V4_NESTED = {
    "main": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
    "compress": {**V4_YARN, "rope_theta": 500.0},
}
V4 = Family(
    "deepseek_v4",
    "DeepSeekV4CausalLM",
    "DeepseekV4Config",
    "DeepseekV4ForCausalLM",
    V4_SIZES,
    {
        "plain": {},
        "yarn, odd sizes, tied": {
            "vocab_size": 37,
            "hidden_size": 21,
            "moe_intermediate_size": 5,
            "num_attention_heads": 3,
            "head_dim": 7,
            "qk_rope_head_dim": 2,
            "o_groups": 3,
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "index_head_dim": 5,
            "compress_rates": {SPARSE: 3, HEAVY: 4},
            "hc_mult": 2,
            "rope_parameters": V4_YARN,
            "tie_word_embeddings": True,
        },
        "windows longer than the text": {
            "compress_rates": {SPARSE: 16, HEAVY: 128},
            "sliding_window": 64,
            "hc_mult": 4,
        },
        "all entries, nested angles, sigmoid": {
            "index_topk": 64,
            "scoring_func": "sigmoid",
            "rope_parameters": {
                kind: {**values, "partial_rotary_factor": 0.6} for kind, values in V4_NESTED.items()
            },
        },
        "four layers, hashes between": {
            "num_hidden_layers": 4,
            "layer_types": [HEAVY, SPARSE, SPARSE, WINDOW],
            "mlp_layer_types": ["moe", "hash_moe", "hash_moe", "moe"],
            "index_topk": 1,
            "sliding_window": 2,
            "swiglu_limit": 0.3,
        },
    },
    sides=("right",),
)
DENSE_SIZES = {
    "vocab_size": 61,
    "hidden_size": 28,
    "intermediate_size": 23,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
SCALINGS = {
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
LLAMA = Family(
    "llama",
    "LlamaCausalLM",
    "LlamaConfig",
    "LlamaForCausalLM",
    DENSE_SIZES,
    {
        "plain": {},
        "llama3, biased": {**SCALINGS["llama3"], "attention_bias": True, "mlp_bias": True},
        "linear, as many heads of keys": {**SCALINGS["linear"], "num_key_value_heads": 4},
        "yarn, tied, one head of keys": {
            **SCALINGS["yarn"],
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "hidden_size": 24,
            "head_dim": None,
        },
        "dynamic": {
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}
        },
    },
)
QWEN2 = Family(
    "qwen2",
    "Qwen2CausalLM",
    "Qwen2Config",
    "Qwen2ForCausalLM",
    DENSE_SIZES,
    {
        "plain": {},
        "yarn, tied": {**SCALINGS["yarn"], "tie_word_embeddings": True},
        "windows": WINDOWS,
        "windows by name": {**WINDOWS, "layer_types": [WINDOW, "full_attention", WINDOW]},
    },
)
QWEN3 = Family(
    "qwen3",
    "Qwen3CausalLM",
    "Qwen3Config",
    "Qwen3ForCausalLM",
    DENSE_SIZES,
    {
        "plain": {},
        "yarn, biased, tied": {
            **SCALINGS["yarn"],
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        "windows": WINDOWS,
    },
)
FAMILIES = {family.name: family for family in (V2, V3, V32, V4, LLAMA, QWEN2, QWEN3)}
CASES = [(family, case) for family in FAMILIES for case in FAMILIES[family].cases]

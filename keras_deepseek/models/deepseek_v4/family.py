"""The declaration of the DeepSeek-V4 family, and its presets by name.

The sizes `deepseek_v4_flash` and `deepseek_v4_pro` are taken from the `config.json` of
`deepseek-ai/DeepSeek-V4-Flash` and `deepseek-ai/DeepSeek-V4-Pro`. Their `-Base` models have the
same sizes.
"""

from typing import Any

from keras_deepseek.models.family import Family

_WINDOW, _SPARSE, _HEAVY = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)
_YARN = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 65536,
    "beta_fast": 32,
    "beta_slow": 1,
}

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocabulary_size": 256,
        "hidden_dim": 64,
        "num_heads": 4,
        "head_dim": 32,
        "rope_head_dim": 16,
        "query_lora_rank": 32,
        "num_output_groups": 2,
        "output_lora_rank": 32,
        "moe_intermediate_dim": 64,
        "num_experts": 8,
        "num_experts_per_token": 2,
        "layer_types": (_WINDOW, _SPARSE, _HEAVY, _SPARSE),
        "router_types": ("hash", "score", "score", "score"),
        "sparse_compress_rate": 4,
        "heavy_compress_rate": 16,
        "index_num_heads": 4,
        "index_head_dim": 16,
        "index_top_k": 8,
        "sliding_window": 16,
        "max_length": 4096,
    },
    "deepseek_v4_flash": {
        "vocabulary_size": 129280,
        "hidden_dim": 4096,
        "num_heads": 64,
        "head_dim": 512,
        "rope_head_dim": 64,
        "query_lora_rank": 1024,
        "num_output_groups": 8,
        "output_lora_rank": 1024,
        "moe_intermediate_dim": 2048,
        "num_experts": 256,
        "num_experts_per_token": 6,
        "layer_types": (_WINDOW, _WINDOW, *(_SPARSE, _HEAVY) * 20, _SPARSE),
        "router_types": ("hash",) * 3 + ("score",) * 40,
        "index_top_k": 512,
        "routed_scale": 1.5,
        "compress_rope_scaling": _YARN,
        "num_prediction_layers": 1,
    },
    "deepseek_v4_pro": {
        "vocabulary_size": 129280,
        "hidden_dim": 7168,
        "num_heads": 128,
        "head_dim": 512,
        "rope_head_dim": 64,
        "query_lora_rank": 1536,
        "num_output_groups": 16,
        "output_lora_rank": 1024,
        "moe_intermediate_dim": 3072,
        "num_experts": 384,
        "num_experts_per_token": 6,
        "layer_types": (_HEAVY, _HEAVY, *(_SPARSE, _HEAVY) * 29, _SPARSE),
        "router_types": ("hash",) * 3 + ("score",) * 58,
        "index_top_k": 1024,
        "routed_scale": 2.5,
        "compress_rope_scaling": _YARN,
        "num_prediction_layers": 1,
    },
}

DEEPSEEK_V4 = Family(
    model_type="deepseek_v4",
    architectures=("DeepseekV4ForCausalLM",),
    presets=_PRESETS,
)

"""The declaration of the DeepSeek-V3 family, and its presets by name."""

from typing import Any

from keras_deepseek.models.family import Family

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocabulary_size": 256,
        "hidden_dim": 64,
        "intermediate_dim": 128,
        "num_layers": 2,
        "num_heads": 4,
        "nope_head_dim": 16,
        "rope_head_dim": 8,
        "value_head_dim": 16,
        "key_value_lora_rank": 32,
        "query_lora_rank": 24,
        "num_experts": 8,
        "num_experts_per_token": 2,
        "moe_intermediate_dim": 32,
        "num_dense_layers": 1,
    },
    "deepseek_v3": {
        "vocabulary_size": 129280,
        "hidden_dim": 7168,
        "intermediate_dim": 18432,
        "num_layers": 61,
        "num_heads": 128,
        "nope_head_dim": 128,
        "rope_head_dim": 64,
        "value_head_dim": 128,
        "key_value_lora_rank": 512,
        "query_lora_rank": 1536,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "moe_intermediate_dim": 2048,
        "num_dense_layers": 3,
        "num_groups": 8,
        "num_groups_per_token": 4,
        "routed_scale": 2.5,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "max_length": 163840,
        "start_token_id": 0,
        "end_token_id": 1,
    },
}

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    presets=_PRESETS,
    peft_adapts_experts=True,
)

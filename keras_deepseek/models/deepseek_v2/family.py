"""The declaration of the DeepSeek-V2 family, and its presets by name."""

from typing import Any

from keras_deepseek.models.family import Family

_PUBLISHED: dict[str, Any] = {
    "vocabulary_size": 102400,
    "nope_head_dim": 128,
    "rope_head_dim": 64,
    "value_head_dim": 128,
    "key_value_lora_rank": 512,
    "num_experts_per_token": 6,
    "num_shared_experts": 2,
    "num_dense_layers": 1,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "max_length": 163840,
    "start_token_id": 100000,
    "end_token_id": 100001,
}

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
        "num_experts": 8,
        "num_experts_per_token": 2,
        "moe_intermediate_dim": 32,
        "num_dense_layers": 1,
    },
    "deepseek_v2_lite": {
        **_PUBLISHED,
        "hidden_dim": 2048,
        "intermediate_dim": 10944,
        "num_layers": 27,
        "num_heads": 16,
        "num_experts": 64,
        "moe_intermediate_dim": 1408,
    },
    "deepseek_v2": {
        **_PUBLISHED,
        "hidden_dim": 5120,
        "intermediate_dim": 12288,
        "num_layers": 60,
        "num_heads": 128,
        "query_lora_rank": 1536,
        "num_experts": 160,
        "moe_intermediate_dim": 1536,
        "num_groups": 8,
        "num_groups_per_token": 3,
        "routed_scale": 16.0,
    },
}

DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    presets=_PRESETS,
    peft_adapts_experts=True,
)

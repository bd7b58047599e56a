"""The declarations of the Llama, Qwen2 and Qwen3 families, with the sizes of DeepSeek's releases.

The sizes are those of the `config.json` of DeepSeek-R1-Distill-Llama and -Qwen, DeepSeek-R1-0528-
Qwen3-8B, DeepSeek-LLM, DeepSeek-Math and DeepSeek-Coder.
"""

from typing import Any

from keras_deepseek.models.family import Family

_TINY: dict[str, Any] = {
    "vocabulary_size": 256,
    "hidden_dim": 64,
    "intermediate_dim": 128,
    "num_layers": 2,
    "num_heads": 4,
    "num_key_value_heads": 2,
}


def _size(hidden: int, intermediate: int, layers: int, heads: int, pairs: int) -> dict[str, Any]:
    """Returns the arguments of one size; `pairs` is the number of heads of keys and values."""
    return {
        "hidden_dim": hidden,
        "intermediate_dim": intermediate,
        "num_layers": layers,
        "num_heads": heads,
        "num_key_value_heads": pairs,
    }


_LLAMA_3: dict[str, Any] = {
    "vocabulary_size": 128256,
    "rope_max_wavelength": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "epsilon": 1e-5,
    "max_length": 131072,
    "start_token_id": 128000,
    "end_token_id": 128001,
}
_CODER: dict[str, Any] = {
    "vocabulary_size": 32256,
    "rope_max_wavelength": 100000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "max_length": 16384,
    "start_token_id": 32013,
    "end_token_id": 32014,
}
_DEEPSEEK_7B: dict[str, Any] = {
    **_size(4096, 11008, 30, 32, 32),
    "vocabulary_size": 102400,
    "max_length": 4096,
    "start_token_id": 100000,
    "end_token_id": 100001,
}
_QWEN_MATH: dict[str, Any] = {
    "max_length": 131072,
    "start_token_id": 151646,
    "end_token_id": 151643,
}
_QWEN: dict[str, Any] = {
    **_QWEN_MATH,
    "vocabulary_size": 152064,
    "rope_max_wavelength": 1000000.0,
    "epsilon": 1e-5,
    "start_token_id": 151643,
}

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    presets={
        "tiny": _TINY,
        "deepseek_coder_1b": {**_CODER, **_size(2048, 5504, 24, 16, 16)},
        "deepseek_coder_7b": {**_CODER, **_size(4096, 11008, 32, 32, 32)},
        "deepseek_coder_33b": {**_CODER, **_size(7168, 19200, 62, 56, 8)},
        "deepseek_llm_7b": _DEEPSEEK_7B,
        "deepseek_r1_distill_llama_8b": {**_LLAMA_3, **_size(4096, 14336, 32, 32, 8)},
        "deepseek_r1_distill_llama_70b": {**_LLAMA_3, **_size(8192, 28672, 80, 64, 8)},
    },
)
QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    presets={
        "tiny": _TINY,
        "deepseek_r1_distill_qwen_1b": {
            **_QWEN_MATH,
            **_size(1536, 8960, 28, 12, 2),
            "vocabulary_size": 151936,
        },
        "deepseek_r1_distill_qwen_7b": {
            **_QWEN_MATH,
            **_size(3584, 18944, 28, 28, 4),
            "vocabulary_size": 152064,
        },
        "deepseek_r1_distill_qwen_14b": {**_QWEN, **_size(5120, 13824, 48, 40, 8)},
        "deepseek_r1_distill_qwen_32b": {**_QWEN, **_size(5120, 27648, 64, 40, 8)},
    },
)
QWEN3 = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    presets={
        "tiny": {**_TINY, "head_dim": 24},
        "deepseek_r1_0528_qwen3_8b": {
            **_size(4096, 12288, 36, 32, 8),
            "head_dim": 128,
            "vocabulary_size": 151936,
            "rope_max_wavelength": 1000000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "attn_factor": 0.8782488562869419,
            },
            "max_length": 131072,
            "start_token_id": 151643,
            "end_token_id": 151645,
        },
    },
)

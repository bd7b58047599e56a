import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models import (
    LlamaConfig,
    Qwen2CausalLM,
    Qwen2Config,
    Qwen3CausalLM,
    Qwen3Config,
)

QWEN = {
    "model_type": "qwen2",
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 5,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "sliding_window": 4096,
    "max_window_layers": 1,
}


def count_parameters(config):
    """Returns how many numbers a model has."""
    arguments = config.attention_arguments(0)
    dim, head_dim = config.hidden_dim, arguments["head_dim"]
    outputs = (config.num_heads + 2 * config.num_key_value_heads) * head_dim
    layer = dim * outputs + config.num_heads * head_dim * dim
    layer += 3 * dim * config.intermediate_dim + 2 * dim
    layer += outputs if arguments["use_bias"] else 0
    layer += 2 * head_dim if arguments["use_query_key_norm"] else 0
    tables = 1 if config.tie_word_embeddings else 2
    return config.num_layers * layer + tables * config.vocabulary_size * dim + dim


@pytest.mark.parametrize(
    ("config_class", "name", "billions"),
    [
        (LlamaConfig, "deepseek_coder_1b", 1.35),
        (LlamaConfig, "deepseek_coder_7b", 6.74),
        (LlamaConfig, "deepseek_coder_33b", 33.34),
        (LlamaConfig, "deepseek_llm_7b", 6.91),
        (LlamaConfig, "deepseek_r1_distill_llama_8b", 8.03),
        (LlamaConfig, "deepseek_r1_distill_llama_70b", 70.55),
        (Qwen2Config, "deepseek_r1_distill_qwen_1b", 1.78),
        (Qwen2Config, "deepseek_r1_distill_qwen_7b", 7.62),
        (Qwen2Config, "deepseek_r1_distill_qwen_14b", 14.77),
        (Qwen2Config, "deepseek_r1_distill_qwen_32b", 32.76),
        (Qwen3Config, "deepseek_r1_0528_qwen3_8b", 8.19),
    ],
)
def test_the_published_sizes_have_the_published_number_of_parameters(config_class, name, billions):
    assert round(count_parameters(config_class.from_preset(name)) / 1e9, 2) == billions


@pytest.mark.parametrize("task", [Qwen2CausalLM, Qwen3CausalLM])
def test_the_count_of_parameters_is_that_of_a_model(task):
    config = task.config_class.from_preset("tiny")
    assert count_parameters(config) == task(config).count_params()


@pytest.mark.parametrize(
    ("values", "window", "types"),
    [
        ({}, None, None),
        ({"use_sliding_window": True}, 4096, ("full_attention",) + ("sliding_attention",) * 2),
        ({"use_sliding_window": True, "max_window_layers": 3}, None, None),
        (
            {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 3},
            4096,
            ("sliding_attention",) * 3,
        ),
    ],
)
def test_windows_are_read_and_written(values, window, types):
    config = Qwen2Config.from_checkpoint_config({**QWEN, **values})
    assert (config.sliding_window, config.layer_types) == (window, types)
    assert [config.attention_arguments(index)["sliding_window"] for index in range(3)] == [
        window if types and types[index] == "sliding_attention" else None for index in range(3)
    ]
    again = Qwen2Config.from_checkpoint_config(config.to_checkpoint_config())
    assert (again.sliding_window, again.layer_types) == (window, types)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gelu"}, "`hidden_act` in the config.json must be 'silu'"),
        ({"use_mrope": True}, "`use_mrope` in the config.json must be False"),
        ({"model_type": "qwen3"}, "`model_type` in the config.json must be 'qwen2'"),
        ({"rope_scaling": {"type": "su"}}, "rope_type of `rope_scaling`"),
        ({"num_experts": 4}, "unknown keys: 'num_experts': 4"),
        ({"num_key_value_heads": 3}, "`num_key_value_heads` must divide `num_heads`"),
        ({"hidden_size": 9}, "`num_heads` must divide `hidden_dim`"),
        ({"layer_types": ["sliding_attention"] * 3}, "`sliding_window` must be a positive integer"),
        ({"layer_types": ["linear_attention"] * 3}, "`layer_types` must be one of"),
    ],
)
def test_an_unsupported_option_is_named(values, message):
    with pytest.raises(InvalidInputError, match=message):
        Qwen2Config.from_checkpoint_config({**QWEN, **values})


def test_a_key_without_a_fitting_default_is_required():
    values = {name: x for name, x in QWEN.items() if name != "num_key_value_heads"}
    with pytest.raises(InvalidInputError, match="lacks num_key_value_heads"):
        Qwen2Config.from_checkpoint_config(values)

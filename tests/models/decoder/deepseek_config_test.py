import json

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV2Config, DeepSeekV3Config

LITE = {  # What the release of DeepSeek-V2-Lite has.
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def test_a_published_file_is_the_preset_of_its_name():
    config = DeepSeekV2Config.from_checkpoint_config(LITE)
    assert config == DeepSeekV2Config.from_preset("deepseek_v2_lite")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"query_lora_rank": None, "tie_word_embeddings": True, "use_attention_bias": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "max_length": 64},
        {"end_token_id": (1, 2), "start_token_id": 0, "num_shared_experts": 0},
    ],
)
def test_it_is_the_same_after_a_round_trip_through_a_file(overrides):
    config = DeepSeekV3Config.from_preset("tiny", **overrides)
    values = json.loads(json.dumps(config.to_checkpoint_config()))
    assert DeepSeekV3Config.from_checkpoint_config(values) == config


def test_without_experts_it_is_written_as_layers_that_have_none():
    config = DeepSeekV3Config.from_preset("tiny", num_experts=None)
    read = DeepSeekV3Config.from_checkpoint_config(config.to_checkpoint_config())
    assert not any(read.has_experts(index) for index in range(read.num_layers))


def test_which_layers_have_experts():
    config = DeepSeekV3Config.from_preset(
        "tiny", num_layers=7, num_dense_layers=2, moe_layer_frequency=3
    )
    assert [index for index in range(8) if config.has_experts(index)] == [3, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_lora_rnk": 3}, "'kv_lora_rnk': 3"),
        ({"model_type": "llama"}, "`model_type`.*'deepseek_v2', received 'llama'"),
        ({"hidden_act": "gelu"}, "`hidden_act`.*'silu', received 'gelu'"),
        ({"num_key_value_heads": 4}, "`num_key_value_heads`.*16, received 4"),
        ({"mlp_bias": True}, "`mlp_bias`"),
        ({"rope_scaling": None, "rope_parameters": [1]}, r"`rope_parameters` .* received \[1\]"),
        ({"rope_scaling": "yarn"}, "`rope_scaling` .* an object or null, received 'yarn'"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads="),
        ({"topk_method": "noaux_tc"}, "`topk_method`.*'greedy' or 'group_limited_greedy'"),
        ({"hidden_size": 0}, "`hidden_dim` must be a positive integer"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(InvalidInputError, match=message):
        DeepSeekV2Config.from_checkpoint_config({**LITE, **change})


def test_what_is_missing_is_named():
    values = {key: value for key, value in LITE.items() if key != "kv_lora_rank"}
    with pytest.raises(InvalidInputError, match="lacks kv_lora_rank"):
        DeepSeekV2Config.from_checkpoint_config(values)


def test_a_dynamic_scaling_is_read_by_the_number_of_positions_or_refused():
    change = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    config = DeepSeekV2Config.from_checkpoint_config({**LITE, **change})
    assert config.rope_scaling["original_max_position_embeddings"] == 163840
    for length in (None, "many"):
        with pytest.raises(InvalidInputError, match=r"original_max_position_emb|`max_length` must"):
            DeepSeekV2Config.from_checkpoint_config(
                {**LITE, **change, "max_position_embeddings": length}
            )


def test_greedy_choice_knows_no_groups():
    config = DeepSeekV2Config.from_checkpoint_config({**LITE, "n_group": 8, "topk_group": 3})
    assert (config.num_groups, config.num_groups_per_token) == (1, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_layers": 0}, "`num_layers` must be a positive integer"),
        ({"num_experts_per_token": None}, "`num_experts_per_token` must be"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "A yarn `rope_scaling` needs"),
        ({"attention_dropout": 1.0}, "`attention_dropout`"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings` must be True or False"),
        ({"num_prediction_layers": -1}, "`num_prediction_layers`"),
    ],
)
def test_a_value_out_of_range_is_refused(overrides, message):
    with pytest.raises(InvalidInputError, match=message):
        DeepSeekV3Config.from_preset("tiny", **overrides)


def test_an_unknown_preset_is_refused():
    with pytest.raises(InvalidInputError, match="deepseek_v3"):
        DeepSeekV3Config.from_preset("deepseek_v33")

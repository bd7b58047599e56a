import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV4Config
from keras_deepseek.models.deepseek_v4.checkpoint_config import read_checkpoint_config

RELEASE = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    "compress_rope_theta": 160000,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "hc_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
    "num_hidden_layers": 43,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 129280,
}
"""What DeepSeek's own `config.json` of V4-Flash holds."""


def read(**changes):
    return DeepSeekV4Config.from_checkpoint_config({**RELEASE, **changes})


def test_the_config_of_the_release_is_the_preset():
    expected = DeepSeekV4Config.from_preset(
        "deepseek_v4_flash", start_token_id=0, end_token_id=1, num_prediction_layers=0
    )
    config = read()
    scaling = dict(config.compress_rope_scaling)
    assert scaling.pop("attention_factor") == 1.0  # As the layers complete it.
    assert DeepSeekV4Config(**{**vars(config), "compress_rope_scaling": scaling}) == expected


def test_ratios_beyond_the_layers_are_of_those_that_predict_further_tokens():
    config = read(num_hidden_layers=3)
    assert config.layer_types == ("sliding_attention",) * 2 + ("compressed_sparse_attention",)
    assert config.router_types == ("hash",) * 3


def test_transformers_names_each_layer():
    config = read(
        num_hidden_layers=2,
        layer_types=["heavily_compressed_attention", "sliding_attention"],
        mlp_layer_types=["moe", "hash_moe"],
        compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 8},
    )
    assert config.layer_types == ("heavily_compressed_attention", "sliding_attention")
    assert config.router_types == ("score", "hash")
    assert (config.sparse_compress_rate, config.heavy_compress_rate) == (2, 8)


def test_rates_may_stand_apart():
    config = read(compress_rate_csa=2, compress_rate_hca=16)
    assert (config.sparse_compress_rate, config.heavy_compress_rate) == (2, 16)


def test_rotary_angles_may_be_nested():
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    yarn = {**RELEASE["rope_scaling"], "rope_type": "yarn", "rope_theta": 700.0}
    nested = {
        "main": {**linear, "partial_rotary_factor": 0.25},
        "compress": {**yarn, "partial_rotary_factor": 0.25},
    }
    config = read(rope_parameters=nested, qk_rope_head_dim=None)
    assert config.rope_head_dim == 128
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert (config.rope_max_wavelength, config.compress_rope_max_wavelength) == (500.0, 700.0)
    # There YaRN raises the amplitude where it is not told what to do.
    assert config.compress_rope_scaling["attention_factor"] is None
    plain = read(rope_parameters={**nested, "main": {}}, qk_rope_head_dim=None)
    assert (plain.rope_scaling, plain.compress_rope_max_wavelength) == (None, 700.0)
    assert plain.compress_rope_scaling == config.compress_rope_scaling


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_trained_length_that_is_not_there_is_the_number_of_positions(is_nested):
    yarn = {"rope_type": "yarn", "factor": 4.0}
    scaling = {"main": dict(yarn), "compress": dict(yarn)} if is_nested else yarn
    config = read(rope_scaling=None, rope_parameters=scaling, max_position_embeddings=96)
    assert config.compress_rope_scaling["original_max_position_embeddings"] == 96
    if is_nested:
        assert config.rope_scaling["original_max_position_embeddings"] == 96
    config = read(rope_scaling=None, rope_parameters=scaling, max_position_embeddings=None)
    assert config.compress_rope_scaling["original_max_position_embeddings"] == 1048576


def test_a_config_that_says_little_is_read_as_by_transformers():
    arguments = read_checkpoint_config({"model_type": "deepseek_v4", "num_hidden_layers": 4})
    config = DeepSeekV4Config(**arguments)
    heavy, sparse = "heavily_compressed_attention", "compressed_sparse_attention"
    assert config.layer_types == (heavy, heavy, heavy, sparse)
    assert config.router_types == ("hash",) * 3 + ("score",)
    assert (config.hidden_dim, config.rope_head_dim) == (4096, 64)


@pytest.mark.parametrize("rotated", [2, 4, 6, 22, 58])
@pytest.mark.parametrize("head_dim", [58, 59, 107])
def test_the_share_that_is_rotated_is_read_as_it_was_written(rotated, head_dim):
    config = DeepSeekV4Config.from_preset(
        "tiny", head_dim=head_dim, rope_head_dim=rotated, index_head_dim=64
    )
    values = config.to_checkpoint_config()
    assert int(head_dim * values["partial_rotary_factor"]) == rotated
    assert DeepSeekV4Config.from_checkpoint_config(values) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_sise": 4}, "unknown keys: 'hidden_sise': 4"),
        (
            {"rope_parameters": {"main": [], "compress": {}}},
            "`main` in the config.json must be an",
        ),
        ({"rope_parameters": {"compress": "yarn"}}, "`compress` in the config.json must be"),
        (
            {"qk_rope_head_dim": None, "partial_rotary_factor": "0.125"},
            "`partial_rotary_factor` must be a finite number",
        ),
        ({"model_type": "deepseek_v3"}, "deepseek_v3"),
        ({"n_shared_experts": 2}, "`n_shared_experts`.*received 2"),
        ({"hidden_act": "gelu"}, "`hidden_act`.*received 'gelu'"),
        ({"norm_topk_prob": False}, "`norm_topk_prob`.*received False"),
        ({"scoring_func": "relu"}, "scoring_func.*'relu'"),
        ({"compress_ratios": [2] * 44}, "`compress_ratios` must be one of 0, 4, 128, received 2"),
        ({"mlp_layer_types": ["dense"] * 43}, "`mlp_layer_types`.*received 'dense'"),
        ({"num_hidden_layers": 60}, "60 `num_hidden_layers`.*received 44"),
    ],
)
def test_what_no_such_model_has_is_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        read(**changes)

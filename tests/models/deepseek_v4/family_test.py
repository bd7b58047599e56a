import math

import pytest

from keras_deepseek.models import DeepSeekV4Config
from keras_deepseek.models.deepseek_v4.family import DEEPSEEK_V4


@pytest.mark.parametrize("name", DEEPSEEK_V4.presets)
def test_each_is_a_config(name):
    assert DeepSeekV4Config.from_preset(name).num_layers > 3


def count_parameters(config, experts):
    """By the shapes of a layer's weights, norms and streams left out: they are small."""
    heads, head_dim, dim = config.num_heads, config.head_dim, config.hidden_dim
    rank, output = config.query_lora_rank, config.num_output_groups * config.output_lora_rank
    attention = dim * (rank + head_dim) + rank * heads * head_dim
    attention += heads * head_dim * config.output_lora_rank + output * dim
    feed_forward = 3 * dim * config.moe_intermediate_dim * (experts + 1) + dim * config.num_experts
    compressed = {
        "sliding_attention": 0,
        "heavily_compressed_attention": 2 * dim * head_dim,
        "compressed_sparse_attention": 4 * dim * (head_dim + config.index_head_dim)
        + rank * config.index_num_heads * config.index_head_dim
        + dim * config.index_num_heads,
    }
    layers = sum(attention + feed_forward + compressed[kind] for kind in config.layer_types)
    return layers + 2 * config.vocabulary_size * dim


@pytest.mark.parametrize(
    ("name", "layers", "total", "active"),
    [("deepseek_v4_flash", 43, 284e9, 13e9), ("deepseek_v4_pro", 61, 1.6e12, 49e9)],
)
def test_the_published_ones_have_as_many_parameters_as_was_published(name, layers, total, active):
    config = DeepSeekV4Config.from_preset(name)
    assert config.num_layers == layers
    table = config.vocabulary_size * config.hidden_dim  # Of which a token looks up one row.
    assert math.isclose(count_parameters(config, config.num_experts), total, rel_tol=0.02)
    used = count_parameters(config, config.num_experts_per_token) - table
    assert math.isclose(used, active, rel_tol=0.02)

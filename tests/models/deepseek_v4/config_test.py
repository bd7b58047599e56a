import dataclasses
import json

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV4Config


def make_config(**kwargs):
    return DeepSeekV4Config.from_preset("tiny", **kwargs)


def test_a_preset_is_completed_by_what_is_given():
    config = make_config(vocabulary_size=99, tie_word_embeddings=True)
    assert (config.vocabulary_size, config.tie_word_embeddings, config.num_layers) == (99, True, 4)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InvalidInputError, match="did you mean 'deepseek_v4_flash'"):
        DeepSeekV4Config.from_preset("deepseek_v4_flush")


def test_it_is_the_same_after_json():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = make_config(compress_rope_scaling=yarn, end_token_id=(1, 2))
    assert DeepSeekV4Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "broken",
    [
        {"vocabulary_size": 0},
        {"num_heads": 3},
        {"num_streams": 1},
        {"num_experts_per_token": 9},
        {"rope_head_dim": 15},
        {"rope_head_dim": 34},
        {"index_head_dim": 8},
        {"layer_types": ()},
        {"router_types": ("hash",)},
        {"layer_types": ("sliding",) * 4},
        {"router_types": ("top",) * 4},
        {"scoring": "softmax"},
        {"clamp": 0.0},
        {"attention_dropout": 1.0},
        {"tie_word_embeddings": 1},
        {"num_prediction_layers": -1},
        {"rope_max_wavelength": 1.0},
        {"compress_rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"index_top_k": 2.5},
        {"epsilon": -1.0},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named(broken):
    (name,) = broken
    related = {"num_heads": "num_output_groups", "index_head_dim": "rope_head_dim"}
    with pytest.raises(InvalidInputError, match=f"`{related.get(name, name)}"):
        make_config(**broken)


def test_it_is_the_same_after_a_checkpoints_config():
    config = make_config(num_prediction_layers=2, pad_token_id=3)
    values = json.loads(json.dumps(config.to_checkpoint_config()))
    assert DeepSeekV4Config.from_checkpoint_config(values, num_prediction_layers=2) == config
    assert DeepSeekV4Config.from_checkpoint_config(values).num_prediction_layers == 0

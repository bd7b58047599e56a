import pytest

from keras_deepseek.models import DeepSeekV2Config


def test_it_routes_as_v2():
    arguments = DeepSeekV2Config.from_preset("tiny").router_arguments()
    assert arguments["scoring"] == "softmax"
    assert arguments["group_scoring"] == "max"
    assert not arguments["use_expert_bias"]


@pytest.mark.parametrize(("normalize_weights", "scale"), [(False, 16.0), (True, 1.0)])
def test_weights_are_normalized_or_scaled(normalize_weights, scale):
    config = DeepSeekV2Config.from_preset(
        "tiny", normalize_weights=normalize_weights, routed_scale=16.0
    )
    assert config.router_arguments()["routed_scale"] == scale


@pytest.mark.parametrize(("num_groups", "method"), [(1, "greedy"), (4, "group_limited_greedy")])
def test_groups_have_a_method_of_their_own_in_a_checkpoint(num_groups, method):
    config = DeepSeekV2Config.from_preset("tiny", num_groups=num_groups)
    values = config.to_checkpoint_config()
    assert values["topk_method"] == method
    assert DeepSeekV2Config.from_checkpoint_config(values) == config

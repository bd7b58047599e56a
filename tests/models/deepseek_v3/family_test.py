import pytest

from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config
from keras_deepseek.models.deepseek_v3.config import DEEPSEEK_V3
from tests.oracles.golden_language_models import count_parameters


@pytest.mark.parametrize("name", list(DEEPSEEK_V3.presets))
def test_every_preset_is_a_config(name):
    assert DeepSeekV3Config.from_preset(name).num_layers > 1


def test_the_published_size_has_the_published_number_of_parameters():
    config = DeepSeekV3Config.from_preset("deepseek_v3")
    assert round(count_parameters(config) / 1e9) == 671
    with_module = DeepSeekV3Config.from_preset("deepseek_v3", num_prediction_layers=1)
    # 11.5 billion by README_WEIGHTS.md of the release, which is the layer without its projection.
    module = count_parameters(with_module) - count_parameters(config)
    assert round((module - 2 * config.hidden_dim**2) / 1e9, 1) == 11.5


def test_the_count_of_parameters_is_that_of_a_model():
    config = DeepSeekV3Config.from_preset("tiny", num_prediction_layers=1)
    model = DeepSeekV3CausalLM(config)
    counters = sum(v.shape[0] for v in model.variables if v.path.endswith("expert_load"))
    assert count_parameters(config) == model.count_params() - counters

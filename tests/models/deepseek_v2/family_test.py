import pytest

from keras_deepseek.models import DeepSeekV2CausalLM, DeepSeekV2Config
from keras_deepseek.models.deepseek_v2.config import DEEPSEEK_V2
from tests.oracles.golden_language_models import count_parameters


@pytest.mark.parametrize("name", list(DEEPSEEK_V2.presets))
def test_every_preset_is_a_config(name):
    assert DeepSeekV2Config.from_preset(name).num_layers > 1


def test_the_published_sizes_have_the_published_number_of_parameters():
    sizes = {
        name: count_parameters(DeepSeekV2Config.from_preset(name)) for name in DEEPSEEK_V2.presets
    }
    assert round(sizes["deepseek_v2_lite"] / 1e9, 1) == 15.7
    assert round(sizes["deepseek_v2"] / 1e9) == 236


def test_the_count_of_parameters_is_that_of_a_model():
    config = DeepSeekV2Config.from_preset("tiny", num_prediction_layers=1)
    model = DeepSeekV2CausalLM(config)
    counters = sum(v.shape[0] for v in model.variables if v.path.endswith("expert_load"))
    assert count_parameters(config) == model.count_params() - counters

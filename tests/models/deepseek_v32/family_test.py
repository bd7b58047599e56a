import pytest

from keras_deepseek.models import DeepSeekV32CausalLM, DeepSeekV32Config
from keras_deepseek.models.deepseek_v32.config import DEEPSEEK_V32
from tests.oracles.golden_language_models import count_parameters


@pytest.mark.parametrize("name", list(DEEPSEEK_V32.presets))
def test_every_preset_is_a_config(name):
    assert DeepSeekV32Config.from_preset(name).num_layers > 1


def test_the_published_size_is_that_of_v3_and_its_indexers():
    config = DeepSeekV32Config.from_preset("deepseek_v32")
    indexer = 1536 * 64 * 128 + 7168 * 128 + 2 * 128 + 7168 * 64
    assert round((count_parameters(config) - 61 * indexer) / 1e9) == 671


def test_the_count_of_parameters_is_that_of_a_model():
    config = DeepSeekV32Config.from_preset("tiny", num_prediction_layers=1)
    model = DeepSeekV32CausalLM(config)
    counters = sum(v.shape[0] for v in model.variables if v.path.endswith("expert_load"))
    assert count_parameters(config) == model.count_params() - counters

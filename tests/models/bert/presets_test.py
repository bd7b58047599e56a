import pytest

from keras_deepseek.models import BertConfig
from keras_deepseek.models.bert.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_makes_a_valid_config(name):
    config = BertConfig.from_preset(name)
    assert config.hidden_dim == 64 * config.num_heads
    assert config.intermediate_dim == 4 * config.hidden_dim

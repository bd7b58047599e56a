import pytest

from keras_deepseek.models import BertConfig
from keras_deepseek.models.bert.config import BERT


@pytest.mark.parametrize("name", BERT.presets)
def test_each_preset_makes_a_valid_config(name):
    config = BertConfig.from_preset(name)
    assert config.hidden_dim == 64 * config.num_heads
    assert config.intermediate_dim == 4 * config.hidden_dim

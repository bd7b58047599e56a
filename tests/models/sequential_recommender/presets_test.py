import pytest

from keras_deepseek.models import SequentialRecommenderConfig
from keras_deepseek.models.sequential_recommender.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_makes_a_valid_config(name):
    config = SequentialRecommenderConfig.from_preset(name, num_items=9)
    assert config.hidden_dim == PRESETS[name]["hidden_dim"]

import pytest

from keras_deepseek.models import SequentialRecommenderConfig
from keras_deepseek.models.sequential_recommender.config import SEQUENTIAL_RECOMMENDER


@pytest.mark.parametrize("name", SEQUENTIAL_RECOMMENDER.presets)
def test_each_preset_makes_a_valid_config(name):
    config = SequentialRecommenderConfig.from_preset(name, num_items=9)
    assert config.hidden_dim == SEQUENTIAL_RECOMMENDER.presets[name]["hidden_dim"]

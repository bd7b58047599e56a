import pytest

from keras_deepseek.models import ResidualImageClassifierConfig
from keras_deepseek.models.residual_image_classifier.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_makes_a_valid_config(name):
    config = ResidualImageClassifierConfig.from_preset(name, num_classes=10)
    assert config.filters_per_stage == tuple(PRESETS[name]["filters_per_stage"])

import pytest

from keras_deepseek.models import ResidualImageClassifierConfig
from keras_deepseek.models.residual_image_classifier.config import RESIDUAL_IMAGE_CLASSIFIER


@pytest.mark.parametrize("name", RESIDUAL_IMAGE_CLASSIFIER.presets)
def test_each_preset_makes_a_valid_config(name):
    config = ResidualImageClassifierConfig.from_preset(name, num_classes=10)
    assert config.filters_per_stage == tuple(
        RESIDUAL_IMAGE_CLASSIFIER.presets[name]["filters_per_stage"]
    )

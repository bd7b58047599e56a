import dataclasses
import json

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import ResidualImageClassifierConfig


def test_a_preset_is_completed_by_what_is_given():
    config = ResidualImageClassifierConfig.from_preset("tiny", num_classes=3, dropout=0.5)
    assert (config.num_classes, config.dropout) == (3, 0.5)
    assert config.filters_per_stage == (16, 32)


def test_what_is_given_goes_before_the_preset():
    config = ResidualImageClassifierConfig.from_preset(
        "tiny", num_classes=3, filters_per_stage=(8, 8)
    )
    assert config.filters_per_stage == (8, 8)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InvalidInputError, match="Unknown preset 'tinny': did you mean 'tiny'"):
        ResidualImageClassifierConfig.from_preset("tinny", num_classes=3)


def test_it_is_the_same_after_json():
    config = ResidualImageClassifierConfig(num_classes=3, image_shape=(None, 16, 1))
    text = json.dumps(dataclasses.asdict(config))
    assert ResidualImageClassifierConfig(**json.loads(text)) == config


@pytest.mark.parametrize(
    "broken",
    [
        {"num_classes": 1},
        {"filters_per_stage": ()},
        {"filters_per_stage": (16, 0)},
        {"blocks_per_stage": (1,)},
        {"blocks_per_stage": (1, 0)},
        {"image_shape": (7, 8, 3)},
        {"image_shape": (None, None, None)},
        {"image_shape": (8, 8)},
        {"image_shape": (8, 8, 0)},
        {"image_shape": ()},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"activation": "relu"},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_what_was_expected(broken):
    (name,) = broken
    with pytest.raises(InvalidInputError, match=rf"`{name}` must be .*, received "):
        ResidualImageClassifierConfig(**{"num_classes": 10, **broken})

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import (
    BertConfig,
    DeepSeekV2Config,
    DeepSeekV3Config,
    DeepSeekV4Config,
    DeepSeekV32Config,
    ResidualImageClassifierConfig,
    SequentialRecommenderConfig,
)
from keras_deepseek.models.preset_config import PresetConfig

CONFIGS = (
    BertConfig,
    DeepSeekV2Config,
    DeepSeekV3Config,
    DeepSeekV32Config,
    DeepSeekV4Config,
    ResidualImageClassifierConfig,
    SequentialRecommenderConfig,
)


@dataclass(frozen=True)
class Sizes(PresetConfig):
    classes: int
    width: int = 3

    presets: ClassVar[dict[str, Any]] = {"tiny": {"width": 2}}


def test_a_preset_is_completed_and_overridden():
    assert Sizes.from_preset("tiny", classes=4) == Sizes(4, 2)
    assert Sizes.from_preset("tiny", classes=4, width=5) == Sizes(4, 5)


def test_an_unknown_preset_is_named_with_those_that_there_are():
    with pytest.raises(InvalidInputError, match=r"'tinny'.*'tiny'"):
        Sizes.from_preset("tinny", classes=4)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_the_documentation_of_a_config_names_its_presets(config_class):
    assert "tiny" in config_class.presets
    for name in config_class.presets:
        assert f'`"{name}"`' in config_class.__doc__

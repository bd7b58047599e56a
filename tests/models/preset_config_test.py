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


def test_what_a_preset_leaves_open_is_asked_for():
    with pytest.raises(
        InvalidInputError, match=r"has no value for classes.*'tiny', classes=\.\.\."
    ):
        Sizes.from_preset("tiny")


def test_without_presets_a_name_is_refused():
    @dataclass(frozen=True)
    class Bare(PresetConfig):
        width: int = 3

    with pytest.raises(InvalidInputError, match="'tiny'"):
        Bare.from_preset("tiny")


def test_it_goes_through_a_config_json_by_its_fields():
    written = Sizes(4, 2).to_checkpoint_config()
    assert written == {"classes": 4, "width": 2}
    read = {**written, "architectures": ["Any"], "dtype": "float32", "transformers_version": "5"}
    assert Sizes.from_checkpoint_config(read) == Sizes(4, 2)
    assert Sizes.from_checkpoint_config({"classes": 4}) == Sizes(4, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"classes": 4, "depth": 2}, r"unknown keys: \'depth': 2\. Known keys: classes, width"),
        ({"width": 2}, "lacks 'classes', for which Sizes has no default"),
    ],
)
def test_what_does_not_fit_is_named(config, message):
    with pytest.raises(InvalidInputError, match=message):
        Sizes.from_checkpoint_config(config)


def test_a_value_of_another_kind_is_shown():
    config = ResidualImageClassifierConfig(3).to_checkpoint_config()
    with pytest.raises(InvalidInputError, match=r"a type that Resid.*'filters_per_stage': 7"):
        ResidualImageClassifierConfig.from_checkpoint_config({**config, "filters_per_stage": 7})


def test_a_field_with_a_name_that_is_taken_is_refused():
    @dataclass(frozen=True)
    class Typed(PresetConfig):
        dtype: str = "float32"

    with pytest.raises(InvalidInputError, match="Typed has a field 'dtype'"):
        Typed().to_checkpoint_config()

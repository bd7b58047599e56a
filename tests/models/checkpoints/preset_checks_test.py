from dataclasses import dataclass
from pathlib import Path

import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_entry import copied_entry
from keras_deepseek.models.checkpoints.preset_folder import (
    check_entries,
    check_not_keras_hub,
    override_config,
)


@dataclass(frozen=True)
class Config:
    width: int = 3


def test_a_config_has_other_values_of_its_own_names_alone():
    assert override_config(Config(), {"width": 4}) == Config(4)
    assert override_config(Config(), {}) == Config()
    with pytest.raises(InvalidInputError, match=r"'widht'.* 'width'"):
        override_config(Config(), {"widht": 4})


def test_a_preset_of_kerashub_is_called_one():
    check_not_keras_hub(Path("folder"), {"architectures": []})
    with pytest.raises(InvalidInputError, match="a preset of KerasHub, of its class 'hub>Bert'"):
        check_not_keras_hub(Path("folder"), {"registered_name": "hub>Bert"})


def test_a_map_fills_each_variable_once():
    first, second = keras.Variable([0.0]), keras.Variable([1.0])
    entries = [copied_entry(first, "a"), copied_entry(second, "b")]
    check_entries(entries, [first])
    for wrong in (entries[:1], [*entries, entries[0]]):
        with pytest.raises(InvalidInputError, match="one entry for each variable"):
            check_entries(wrong, [first, second])

from dataclasses import dataclass
from pathlib import Path

import keras
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models.checkpoints.checkpoint_entry import copied_entry
from keras_deepseek.models.checkpoints.preset_checks import (
    check_entries,
    check_not_of_keras,
    override_config,
    read_policy,
)


@dataclass(frozen=True)
class Config:
    width: int = 3


def test_a_policy_is_one_of_keras_that_does_not_quantize():
    assert read_policy(None) is None
    assert read_policy("mixed_bfloat16").compute_dtype == "bfloat16"
    with pytest.raises(InvalidInputError, match="must be a dtype policy"):
        read_policy("half")
    with pytest.raises(NotSupportedError, match="int8_from_float32"):
        read_policy("int8_from_float32")


def test_a_config_has_other_values_of_its_own_names_alone():
    assert override_config(Config(), {"width": 4}) == Config(4)
    assert override_config(Config(), {}) == Config()
    with pytest.raises(InvalidInputError, match=r"'widht'.* 'width'"):
        override_config(Config(), {"widht": 4})


def test_a_preset_of_kerashub_is_called_one():
    check_not_of_keras(Path("folder"), {"architectures": []})
    with pytest.raises(InvalidInputError, match="a preset of KerasHub, of its class 'hub>Bert'"):
        check_not_of_keras(Path("folder"), {"registered_name": "hub>Bert"})


def test_a_map_fills_each_variable_once():
    first, second = keras.Variable([0.0]), keras.Variable([1.0])
    entries = [copied_entry(first, "a"), copied_entry(second, "b")]
    check_entries(entries, [first])
    for wrong in (entries[:1], [*entries, entries[0]]):
        with pytest.raises(InvalidInputError, match="an entry for each variable"):
            check_entries(wrong, [first, second])

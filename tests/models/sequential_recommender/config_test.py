import dataclasses
import json

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import SequentialRecommenderConfig


def test_a_preset_is_completed_by_what_is_given():
    config = SequentialRecommenderConfig.from_preset("tiny", num_items=9, max_length=4)
    assert (config.num_items, config.max_length, config.hidden_dim) == (9, 4, 32)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InvalidInputError, match="Unknown preset 'smal': did you mean 'small'"):
        SequentialRecommenderConfig.from_preset("smal", num_items=9)


def test_it_is_the_same_after_json():
    config = SequentialRecommenderConfig(num_items=9, activation="relu")
    text = json.dumps(dataclasses.asdict(config))
    assert SequentialRecommenderConfig(**json.loads(text)) == config


@pytest.mark.parametrize(
    "broken",
    [
        {"num_items": 0},
        {"max_length": 0},
        {"hidden_dim": 1.5},
        {"num_layers": 0},
        {"intermediate_dim": -1},
        {"dropout": 1.0},
        {"epsilon": 0},
        {"initializer_range": 0},
        {"num_heads": 7},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_what_was_expected(broken):
    (name,) = broken
    with pytest.raises(InvalidInputError, match=rf"`{name}` must .*, received "):
        SequentialRecommenderConfig(**{"num_items": 5, **broken})

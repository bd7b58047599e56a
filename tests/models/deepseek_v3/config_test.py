import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV3Config


@pytest.mark.parametrize("value", [True, False])
def test_pairs_are_read_from_a_checkpoint_and_neighbours_where_it_says_nothing(value):
    config = DeepSeekV3Config.from_preset("tiny", use_interleaved_pairs=value)
    values = config.to_checkpoint_config()
    assert values["rope_interleave"] is value
    assert DeepSeekV3Config.from_checkpoint_config(values) == config
    del values["rope_interleave"]
    assert DeepSeekV3Config.from_checkpoint_config(values).use_interleaved_pairs


def test_it_routes_as_v3():
    arguments = DeepSeekV3Config.from_preset("tiny").router_arguments()
    assert (arguments["scoring"], arguments["normalize_weights"]) == ("sigmoid", True)


def test_pairs_are_a_boolean():
    with pytest.raises(InvalidInputError, match="`use_interleaved_pairs` must be True or False"):
        DeepSeekV3Config.from_preset("tiny", use_interleaved_pairs="yes")

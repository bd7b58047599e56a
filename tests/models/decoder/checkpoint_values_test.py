import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.decoder.checkpoint_values import (
    check_checkpoint_value,
    check_required_keys,
    read_rope,
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def test_a_missing_key_is_named():
    check_required_keys({"a": None, "b": 1}, ["a", "b"])
    with pytest.raises(InvalidInputError, match=r"needs c, d as well.*model_type 'x'"):
        check_required_keys({"a": 1, "model_type": "x"}, ["a", "c", "d"])


def test_another_value_is_named():
    check_checkpoint_value({}, "hidden_act", allowed=("silu",))
    check_checkpoint_value({"hidden_act": "silu"}, "hidden_act", allowed=("silu",))
    with pytest.raises(InvalidInputError, match=r"`hidden_act`.*must be 'silu', received 'gelu'"):
        check_checkpoint_value({"hidden_act": "gelu"}, "hidden_act", allowed=("silu",))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (10000.0, None)),
        ({"rope_theta": 500, "rope_scaling": None}, (500.0, None)),
        ({"rope_theta": 500, "rope_scaling": YARN}, (500.0, YARN)),
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, (500.0, None)),
        ({"rope_parameters": {**YARN, "rope_theta": 9.0, "beta_fast": None}}, (9.0, YARN)),
        ({"rope_scaling": {"type": "default"}}, (10000.0, None)),
    ],
)
def test_rotary_settings_are_read_from_the_older_and_the_newer_keys(values, expected):
    assert read_rope(values) == expected

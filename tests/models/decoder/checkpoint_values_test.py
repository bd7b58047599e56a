import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.checkpoints.checkpoint_config import (
    check_checkpoint_value,
    check_required_keys,
    complete_scaling,
    read_rope,
)

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def test_a_missing_key_is_named():
    check_required_keys({"a": None, "b": 1}, ["a", "b"])
    with pytest.raises(InvalidInputError, match=r"model_type 'x'. lacks c, d"):
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
        ({"rope_scaling": YARN, "max_position_embeddings": 99}, (10000.0, YARN)),
    ],
)
def test_rotary_settings_are_read_from_the_older_and_the_newer_keys(values, expected):
    assert read_rope(values) == expected


LENGTH = "original_max_position_embeddings"
FACTORS = {"short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_a_trained_length_that_is_not_there_is_the_number_of_positions(kind, name):
    scaling = {name: kind, "factor": 2.0}
    completed = {**scaling, LENGTH: 64}
    assert read_rope({"rope_scaling": scaling, "max_position_embeddings": 64})[1] == completed
    assert read_rope({"rope_scaling": scaling})[1] == scaling
    complete = {**scaling, LENGTH: 8}
    assert complete_scaling(complete, 64) == complete


def test_a_scaling_that_knows_no_length_is_left_as_it_is():
    scaling = {"rope_type": "linear", "factor": 2.0}
    assert complete_scaling(scaling, 64) == scaling


@pytest.mark.parametrize(
    ("scaling", "factor"), [({LENGTH: 16}, 4.0), ({}, 1.0), ({"factor": 3}, 3)]
)
def test_the_factor_of_longrope_may_be_left_to_the_lengths(scaling, factor):
    completed = complete_scaling({"rope_type": "longrope", **FACTORS, **scaling}, 64)
    assert completed["factor"] == factor
    assert completed[LENGTH] == scaling.get(LENGTH, 64)

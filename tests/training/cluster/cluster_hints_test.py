import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import (
    Hint,
    check_addresses,
    local_rank_among,
    read_integer,
    read_text,
)


def test_an_empty_variable_says_nothing():
    assert read_text({"RANK": "  "}, "RANK") is None
    assert read_integer({"RANK": ""}, "RANK") is None
    assert read_integer({}, "RANK") is None


def test_a_number_knows_where_it_stood():
    assert read_integer({"RANK": " 03 "}, "RANK") == Hint(3, "RANK=03")


@pytest.mark.parametrize("text", ["one", "1.0", "-1", "+1", "1_0", "٣", "²", "0x1", "1 2"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(InvalidInputError, match="variable RANK must hold a whole number of at lea"):
        read_integer({"RANK": text}, "RANK")


def test_a_number_that_is_too_small_is_refused():
    with pytest.raises(InvalidInputError, match="at least 1; received '0'"):
        read_integer({"WORLD_SIZE": "0"}, "WORLD_SIZE", minimum=1)


def test_addresses_are_checked_one_by_one_and_together():
    check_addresses("TF_CONFIG", ["a:1", "a:2", "b:1"])
    with pytest.raises(InvalidInputError, match="Each address in TF_CONFIG must be HOST:PORT"):
        check_addresses("TF_CONFIG", ["a:1", "b"])
    with pytest.raises(InvalidInputError, match="gives the address a:1 to more than one process"):
        check_addresses("TF_CONFIG", ["a:1", "b:1", "A:1"])


def test_the_local_rank_counts_those_before_on_the_same_host():
    addresses = ["a:1", "b:1", "a:2", "b:2", "a:3"]
    assert [local_rank_among(addresses, rank) for rank in range(5)] == [0, 0, 1, 1, 2]

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.sources.claims import Claims
from keras_deepseek.training.cluster.sources.keras_distribution import read_keras_distribution


def read(**variables):
    return read_keras_distribution(
        {f"KERAS_DISTRIBUTION_{name}": text for name, text in variables.items()}
    )


def test_one_address_is_the_coordinator_s():
    claims = read(JOB_ADDRESSES="a:1", NUM_PROCESSES="4", PROCESS_ID="3")
    assert (claims.world_size.value, claims.rank.value) == (4, 3)
    assert claims.coordinator.value == "a:1"
    assert claims.local_rank is None


def test_several_addresses_are_counted():
    claims = read(JOB_ADDRESSES="a:1, b:1,a:2", PROCESS_ID="2")
    assert (claims.world_size.value, claims.rank.value) == (3, 2)
    assert (claims.local_rank.value, claims.coordinator.value) == (1, "a:1")
    assert read(JOB_ADDRESSES="a:1,b:1", NUM_PROCESSES="2").world_size.value == 2


def test_what_is_missing_is_not_said():
    assert read() == Claims()
    assert read(PROCESS_ID="1").world_size is None
    assert read(JOB_ADDRESSES="a:1,b:1", PROCESS_ID="2").local_rank is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JOB_ADDRESSES": "a:1,b:1", "NUM_PROCESSES": "3"}, "has 2 addresses"),
        ({"JOB_ADDRESSES": "a:1,"}, "Each address in KERAS_DISTRIBUTION_JOB_ADDRESSES"),
        ({"JOB_ADDRESSES": "a"}, "must be HOST:PORT"),
        ({"JOB_ADDRESSES": "a:1,a:1"}, "to more than one process"),
        ({"NUM_PROCESSES": "0"}, "KERAS_DISTRIBUTION_NUM_PROCESSES must hold"),
        ({"PROCESS_ID": "x"}, "KERAS_DISTRIBUTION_PROCESS_ID must hold"),
    ],
)
def test_malformed_variables_are_refused(variables, message):
    with pytest.raises(InvalidInputError, match=message):
        read(**variables)

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import ClusterHints, read_keras_distribution


def read(**variables):
    return read_keras_distribution(
        {f"KERAS_DISTRIBUTION_{name}": text for name, text in variables.items()}
    )


def test_one_address_is_the_coordinator_s():
    hints = read(JOB_ADDRESSES="a:1", NUM_PROCESSES="4", PROCESS_ID="3")
    assert (hints.world_size.value, hints.rank.value) == (4, 3)
    assert hints.coordinator.value == "a:1"
    assert hints.local_rank is None


def test_several_addresses_are_counted():
    hints = read(JOB_ADDRESSES="a:1, b:1,a:2", PROCESS_ID="2")
    assert (hints.world_size.value, hints.rank.value) == (3, 2)
    assert (hints.local_rank.value, hints.coordinator.value) == (1, "a:1")
    assert read(JOB_ADDRESSES="a:1,b:1", NUM_PROCESSES="2").world_size.value == 2


def test_what_is_missing_is_not_said():
    assert read() == ClusterHints()
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

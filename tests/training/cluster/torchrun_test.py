import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import (
    ClusterHints,
    read_torchrun,
    starts_each_process,
)

ENVIRON = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node-1",
    "MASTER_PORT": "29500",
}


def test_all_variables_are_read():
    hints = read_torchrun(ENVIRON)
    values = (hints.world_size.value, hints.rank.value, hints.local_rank.value)
    assert (*values, hints.coordinator.value) == (4, 3, 1, "node-1:29500")


def test_without_them_nothing_is_said():
    assert read_torchrun({}) == ClusterHints()


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_may_lack_its_brackets(host):
    hints = read_torchrun({"MASTER_ADDR": host, "MASTER_PORT": "80"})
    assert hints.coordinator.value == "[::1]:80"


@pytest.mark.parametrize("name", ["MASTER_ADDR", "MASTER_PORT"])
def test_half_of_an_address_is_refused(name):
    with pytest.raises(InvalidInputError, match="is half of an address"):
        read_torchrun({**ENVIRON, name: ""})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("RANK", "first", "RANK must hold"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must hold a whole number of at least 1"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK must hold"),
        ("MASTER_PORT", "99999", "MASTER_PORT=99999 must be HOST:PORT"),
        ("MASTER_ADDR", "tcp://node", "MASTER_ADDR=tcp://node with"),
    ],
)
def test_a_malformed_variable_is_named(name, text, message):
    with pytest.raises(InvalidInputError, match=message):
        read_torchrun({**ENVIRON, name: text})


def test_a_launcher_of_each_process_gives_the_size_of_its_node():
    assert not starts_each_process(ENVIRON)
    assert starts_each_process({**ENVIRON, "LOCAL_WORLD_SIZE": "2"})
    assert not starts_each_process({"LOCAL_WORLD_SIZE": "2"})

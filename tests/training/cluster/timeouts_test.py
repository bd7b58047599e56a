import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.start_processes import read_join_timeout, read_peer_timeout

READERS = {
    "KERAS_DEEPSEEK_JOIN_TIMEOUT": read_join_timeout,
    "KERAS_DEEPSEEK_PEER_TIMEOUT": read_peer_timeout,
}


@pytest.mark.parametrize("name", READERS)
def test_the_environment_says_how_long(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    assert READERS[name]() > 60
    monkeypatch.setenv(name, "1.5")
    assert READERS[name]() == 1.5


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "inf", "nan", ""])
def test_a_timeout_is_a_number_of_seconds(name, seconds, monkeypatch):
    monkeypatch.setenv(name, seconds)
    with pytest.raises(InvalidInputError, match=f"{name} must be a number of seconds above 0"):
        READERS[name]()

import pytest

from keras_deepseek.training.parameter_server.workers import Workers


def test_servers_restart_only_where_the_engine_says_so(monkeypatch):
    monkeypatch.setattr(Workers, "__abstractmethods__", frozenset())
    with pytest.raises(NotImplementedError, match="do not restart"):
        Workers().read_life(0)
    with pytest.raises(NotImplementedError, match="do not restart"):
        Workers().restart_server(0)

import json
import os

from keras_deepseek import backend
from keras_deepseek.training.parameter_server import task_process


def test_a_task_says_when_it_listens(monkeypatch):
    reading, writing = os.pipe()
    served = []

    def serve(addresses, task_type, index, on_ready):
        served.append((addresses, task_type, index))
        on_ready()

    monkeypatch.setattr(backend.current().distribution, "serve_task", serve)
    addresses = {"worker": ["127.0.0.1:1"]}
    task_process.main([json.dumps(addresses), "worker", "0", str(writing)])
    assert served == [(addresses, "worker", 0)]
    assert os.read(reading, 2) == b"1"
    assert os.read(reading, 2) == b""  # Nobody has the other end any more.
    os.close(reading)


def test_one_that_was_started_again_has_nobody_to_tell(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(
        backend.current().distribution, "serve_task", lambda *arguments: arguments[3]()
    )
    task_process.main(["{}", "worker", "0", str(writing)])

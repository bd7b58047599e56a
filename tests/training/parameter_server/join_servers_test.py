import socket
from types import SimpleNamespace

import keras
import pytest

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training import ClusterSpec, ParameterServer
from keras_deepseek.training.cluster.parameter_server import resolve_settings
from keras_deepseek.training.parameter_server import join_servers as module
from keras_deepseek.training.parameter_server.join_servers import join_servers

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Ray starts the others."
)
SETTINGS = resolve_settings(ParameterServer(num_workers=1, num_servers=1), {})


@pytest.fixture
def connected(monkeypatch):
    """What a backend is told that connects to whatever it is given."""
    calls = []

    def connect(find):
        calls.append(find())
        return SimpleNamespace(num_workers=1, num_servers=1)

    distribution = backend.current().distribution
    monkeypatch.setattr(distribution, "connect_tasks", connect)
    monkeypatch.setattr(distribution, "serve_task", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(module, "_joined", [])
    return calls


def make_cluster(servers, task_type="chief", rank=0):
    return ClusterSpec(
        "parameter_server",
        3,
        rank,
        coordinator="127.0.0.1:1",
        task_type=task_type,
        workers=("127.0.0.1:1", "127.0.0.1:2"),
        servers=servers,
    )


def test_several_processes_are_no_chief():
    cluster = ClusterSpec("parameter_server", 3, 0, coordinator="127.0.0.1:1")
    with pytest.raises(InvalidInputError, match="Only one process, the chief, runs the script"):
        join_servers(SETTINGS, cluster)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="It connects.")
def test_ray_s_are_started_later():
    assert join_servers(SETTINGS, ClusterSpec("parameter_server")) is None


@on_tensorflow
def test_tasks_that_tf_config_names_are_waited_for(connected, monkeypatch):
    monkeypatch.setenv("KERAS_DEEPSEEK_JOIN_TIMEOUT", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(PeerLostError, match=r"Waited 0\.3 s for 127\.0\.0\.1:2: TF_CONFIG"):
            join_servers(SETTINGS, make_cluster((address,)))
    assert connected == []


@on_tensorflow
def test_a_chief_connects_to_those_that_listen(connected):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        cluster = make_cluster((address,))
        object.__setattr__(cluster, "workers", ("127.0.0.1:1", address))
        tasks, _ = join_servers(SETTINGS, cluster)
    assert connected == [{"chief": ("127.0.0.1:1",), "worker": (address,), "ps": (address,)}]
    tasks.look_after()
    tasks.note_update()


@on_tensorflow
@pytest.mark.parametrize(("task_type", "rank", "index"), [("worker", 1, 0), ("ps", 2, 0)])
def test_a_worker_and_a_server_serve(connected, task_type, rank, index):
    with pytest.raises(SystemExit) as ended:
        join_servers(SETTINGS, make_cluster(("127.0.0.1:3",), task_type, rank))
    assert ended.value.code == 0
    ((_, kind, received_index, _),) = connected
    assert (kind, received_index) == (task_type, index)


@on_tensorflow
def test_tasks_stay_as_many_as_they_are(connected, monkeypatch):
    monkeypatch.setattr(module, "LocalTasks", lambda *sizes: SimpleNamespace(addresses={}))
    settings = resolve_settings(ParameterServer(num_workers=2), {})
    with pytest.raises(InvalidInputError, match="already connected to 1 workers and 1 servers of"):
        join_servers(settings, ClusterSpec("parameter_server"))

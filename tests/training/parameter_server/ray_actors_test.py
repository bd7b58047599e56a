import keras
import pytest

from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.training.cluster.parameter_server import ServerSettings
from keras_deepseek.training.parameter_server.ray_actors import import_ray, start_ray

needs_ray = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="It runs on JAX and PyTorch."
)


def test_without_ray_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"`ray` is needed for a parameter server"):
        import_ray()


def make_settings(num_workers):
    return ServerSettings(num_workers, 1, 0, 10, None)


@needs_ray
def test_a_cluster_that_is_too_small_is_said(monkeypatch):
    ray = pytest.importorskip("ray", reason="tox -e ray has it.")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    start_ray(make_settings(3))
    with pytest.raises(InvalidInputError, match="5 workers and 1 servers need 6 CPUs"):
        start_ray(make_settings(5))
    with pytest.raises(InvalidInputError, match="need 3 GPUs of Ray, and the cluster has 0"):
        start_ray(make_settings(3), num_gpus=3)


@needs_ray
def test_a_cluster_of_its_own_listens_on_loopback_alone(monkeypatch):
    ray = pytest.importorskip("ray", reason="tox -e ray has it.")
    init_calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **arguments: init_calls.append(arguments))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    start_ray(make_settings(2))
    (arguments,) = init_calls
    assert arguments["_node_ip_address"] == "127.0.0.1"
    assert arguments["include_dashboard"] is False
    assert arguments["num_cpus"] == 3
    assert arguments["address"] == "local"  # Else Ray looks for one that has run here before.

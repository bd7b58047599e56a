import json

import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.parameter_server import ParameterServer, resolve_settings
from keras_deepseek.training.launch.rank_environment import NUM_SERVERS, NUM_WORKERS, RAY_ADDRESS

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="They have Ray.")
on_ray = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow has its own."
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 0}, "`num_workers` must be a positive integer"),
        ({"num_servers": 0}, "`num_servers` must be a positive integer"),
        ({"snapshot_every": 0}, "`snapshot_every` must be a positive integer"),
        ({"staleness_bound": -1}, "`staleness_bound` must be an integer of at least 0"),
        ({"address": ""}, "`address` must be the address of a Ray cluster"),
        ({"address": 6379}, "`address` must be the address of a Ray cluster"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        ParameterServer(**arguments)


@pytest.mark.parametrize("strategy", [None, "allreduce"])
def test_another_strategy_has_no_servers(strategy):
    assert resolve_settings(strategy, {NUM_WORKERS: "2"}) is None


def test_the_launcher_says_how_many():
    settings = resolve_settings("parameter_server", {NUM_WORKERS: "3", NUM_SERVERS: "2"})
    assert (settings.num_workers, settings.num_servers, settings.staleness_bound) == (3, 2, 6)


@on_ray
def test_the_launcher_names_a_ray_cluster():
    environ = {NUM_WORKERS: "3", RAY_ADDRESS: "10.0.0.1:6379"}
    assert resolve_settings("parameter_server", environ).address == "10.0.0.1:6379"


def test_a_script_says_how_many():
    settings = resolve_settings(ParameterServer(num_workers=2, staleness_bound=0), {})
    assert (settings.num_workers, settings.num_servers, settings.staleness_bound) == (2, 1, 0)
    assert settings.address is None


def test_nobody_says_how_many():
    with pytest.raises(InvalidInputError, match="needs the number of workers"):
        resolve_settings("parameter_server", {})


def test_script_and_launcher_contradict_each_other():
    with pytest.raises(
        InvalidInputError, match=r"num_workers=2\) and KERAS_DEEPSEEK_NUM_WORKERS=3"
    ):
        resolve_settings(ParameterServer(num_workers=2), {NUM_WORKERS: "3"})


@pytest.mark.parametrize("text", ["", "0", "-1", "two"])
def test_a_variable_is_a_number(text):
    with pytest.raises(InvalidInputError, match=f"{NUM_WORKERS} must be a number above 0"):
        resolve_settings("parameter_server", {NUM_WORKERS: text})


def tf_config(num_workers, num_servers):
    addresses = [f"10.0.0.1:{port}" for port in range(1, num_workers + num_servers + 2)]
    cluster = {
        "chief": addresses[:1],
        "worker": addresses[1 : num_workers + 1],
        "ps": addresses[num_workers + 1 :],
    }
    config = {"cluster": cluster, "task": {"type": "chief", "index": 0}}
    return {"TF_CONFIG": json.dumps(config)}


@on_tensorflow
def test_tf_config_says_how_many():
    settings = resolve_settings("parameter_server", tf_config(3, 2))
    assert (settings.num_workers, settings.num_servers) == (3, 2)
    with pytest.raises(InvalidInputError, match=r"num_workers=2\), but TF_CONFIG names 3"):
        resolve_settings(ParameterServer(num_workers=2), tf_config(3, 2))


@on_tensorflow
def test_tensorflow_has_no_ray_cluster():
    with pytest.raises(InvalidInputError, match="for Ray, on JAX and PyTorch; received '10"):
        resolve_settings(ParameterServer(num_workers=2, address="10.0.0.1:6379"), {})

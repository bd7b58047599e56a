import logging

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.device import (
    choose_devices,
    choose_layer_devices,
    device_of_rank,
)


def choose(device_map, **counts):
    return choose_devices(device_map, {"cpu": 1, "gpu": 0, "tpu": 0, **counts}.__getitem__)


def test_what_is_there_is_taken_in_the_order_in_which_it_is_named():
    assert choose({"gpu": 0, "tpu": 1}, gpu=2) == ["gpu:0"]
    assert choose({"gpu": 0, "tpu": 1}, tpu=4) == ["tpu:1"]
    assert choose({"tpu": 1, "gpu": 0}, gpu=2, tpu=4) == ["tpu:1", "gpu:0"]
    assert choose({"gpu": [1, 0], "cpu": 0}, gpu=2) == ["gpu:1", "gpu:0", "cpu:0"]


def test_what_is_missing_is_named_beside_what_is_there(caplog):
    with caplog.at_level(logging.INFO):
        choose({"gpu": 0, "tpu": 1}, gpu=2)
    assert "has tpu, but this machine has cpu:0, gpu:0, gpu:1: training on gpu:0" in (caplog.text)


def test_the_cpu_stands_in_for_several_kinds_that_are_missing_with_a_warning(caplog):
    assert choose({"gpu": 0, "tpu": 1}) == ["cpu:0"]
    assert "has gpu, tpu, but this machine has cpu:0: training on cpu:0" in caplog.text


@pytest.mark.parametrize("index", [0, [0, 1]])
def test_a_single_kind_that_is_missing_is_an_error(index):
    with pytest.raises(InvalidInputError, match="but this machine has cpu:0, tpu:0"):
        choose({"gpu": index}, tpu=1)


def test_an_index_beyond_the_last_device_is_refused():
    with pytest.raises(InvalidInputError, match="has gpu:2, but this machine has cpu:0, gpu:0"):
        choose({"gpu": [0, 2]}, gpu=2)


@pytest.mark.parametrize("index", [-1, "0", 1.5, True, None, [0, "1"]])
def test_what_is_no_index_is_refused(index):
    with pytest.raises(InvalidInputError, match="must be an integer of at least 0"):
        choose({"gpu": index}, gpu=2)


@pytest.mark.parametrize("indices", [[], [0, 0]])
def test_each_device_is_named_once(indices):
    with pytest.raises(InvalidInputError, match="must be one index or a list of different ones"):
        choose({"gpu": indices}, gpu=2)


def test_an_unknown_kind_gets_the_nearest_name():
    with pytest.raises(InvalidInputError, match="did you mean 'gpu'"):
        choose({"gpus": 0})
    with pytest.raises(InvalidInputError, match="must be a dict"):
        choose("gpu")


def test_each_process_of_a_machine_has_a_gpu_of_its_own():
    devices = [device_of_rank(rank, lambda kind: {"gpu": 2}.get(kind, 0)) for rank in range(3)]
    assert devices == ["gpu:0", "gpu:1", "gpu:0"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_process_that_sees_one_gpu_or_none_is_not_told(count):
    assert device_of_rank(1, lambda _: count) is None


def choose_by_layer(device_map):
    return choose_layer_devices(device_map, {"cpu": 1, "gpu": 2, "tpu": 0}.__getitem__)


def test_names_of_layers_have_devices_and_kinds_have_indices():
    assert choose_by_layer({"gpu": 1, "tpu": [0, 1]}) is None
    assert choose_by_layer({"encoder*": "gpu:1", "decoder.*": "cpu:0"}) == {
        "encoder*": "gpu:1",
        "decoder.*": "cpu:0",
    }
    with pytest.raises(InvalidInputError, match="must be a dict"):
        choose_by_layer(["gpu:0"])


def test_names_and_kinds_are_not_mixed():
    with pytest.raises(
        InvalidInputError,
        match=r"has both a pattern of layer names, 'encoder\*', and a kind of device",
    ):
        choose_by_layer({"gpu": 0, "encoder*": "gpu:1"})


@pytest.mark.parametrize("device", ["gpu:2", "tpu:0", "gpu", "cuda:0", 1])
def test_a_device_of_layers_that_is_not_there_is_refused_beside_those_that_are(device):
    with pytest.raises(InvalidInputError, match=r"this machine has cpu:0, gpu:0, gpu:1\."):
        choose_by_layer({"encoder*": "gpu:0", "decoder*": device})


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(InvalidInputError, match="is not a valid regular expression"):
        choose_by_layer({"encoder.(": "gpu:0"})

import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.training.device import choose_device, device_of_rank


def choose(device_map, **counts):
    return choose_device(device_map, {"cpu": 1, "gpu": 0, "tpu": 0, **counts}.__getitem__)


def test_the_first_kind_that_is_there_is_taken():
    assert choose({"gpu": 0, "tpu": 1}, gpu=2, tpu=4) == "gpu:0"
    assert choose({"gpu": 0, "tpu": 1}, tpu=4) == "tpu:1"
    assert choose({"tpu": 1, "gpu": 0}, gpu=2, tpu=4) == "tpu:1"


def test_the_cpu_stands_in_for_what_is_not_there():
    assert choose({"gpu": 0, "tpu": 1}) == "cpu:0"


def test_an_index_beyond_the_last_device_is_refused():
    with pytest.raises(InvalidInputError, match="asks for gpu 2; this machine has 2"):
        choose({"gpu": 2}, gpu=2)


@pytest.mark.parametrize("index", [-1, "0", 1.5, True, None])
def test_what_is_no_index_is_refused(index):
    with pytest.raises(InvalidInputError, match="must be an integer of at least 0"):
        choose({"gpu": index}, gpu=2)


def test_an_unknown_kind_gets_the_nearest_name():
    with pytest.raises(InvalidInputError, match="did you mean 'gpu'"):
        choose({"gpus": 0})


def test_each_process_of_a_machine_has_a_gpu_of_its_own():
    devices = [device_of_rank(rank, lambda kind: {"gpu": 2}.get(kind, 0)) for rank in range(3)]
    assert devices == ["gpu:0", "gpu:1", "gpu:0"]


@pytest.mark.parametrize("count", [0, 1])
def test_a_process_that_sees_one_gpu_or_none_is_not_told(count):
    assert device_of_rank(1, lambda _: count) is None

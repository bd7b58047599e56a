import keras
import numpy as np
import pytest

from keras_deepseek.backend import current
from keras_deepseek.errors import InvalidInputError, NotSupportedError

IS_JAX = keras.backend.backend() == "jax"


def make_distribution():
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    return keras.distribution.DataParallel(device_mesh=mesh)


def test_one_device_needs_no_distribution():
    assert current().distribution.spread_over_devices() is None


def test_a_step_is_not_copied_where_there_is_one_device():
    assert current().distribution.replicate_over_devices("allreduce") is None
    with pytest.raises(InvalidInputError, match="received 'any'"):
        current().distribution.replicate_over_devices("any")


@pytest.mark.skipif(not IS_JAX, reason="Only JAX runs one program on all devices.")
def test_one_program_runs_on_devices_of_one_kind():
    assert current().distribution.spread_over_devices(["cpu:0"]).device_mesh.shape == (1,)
    with pytest.raises(NotSupportedError, match="runs on devices of one kind"):
        current().distribution.spread_over_devices(["cpu:0", "gpu:0"])


def test_where_keras_knows_no_distributions_that_is_said():
    if IS_JAX:
        with current().distribution.distributed(make_distribution()):
            assert keras.distribution.distribution() is not None
        assert keras.distribution.distribution() is None
    else:
        with pytest.raises(NotSupportedError, match="Set KERAS_BACKEND=jax"):
            current().distribution.distributed(object.__new__(keras.distribution.DataParallel))


def test_variables_made_outside_are_moved():
    variable = keras.Variable(np.ones(3))
    if not IS_JAX:
        current().distribution.place_variables([variable])  # There is nowhere else.
        return
    from keras_deepseek.backend.jax.distribution import place_batch

    batch = (np.ones((3, 2)), None)
    assert place_batch(batch) is batch
    with current().distribution.distributed(make_distribution()):
        current().distribution.place_variables([variable])
        placed = place_batch(batch)
    assert variable._layout is not None
    assert variable.value.sharding.device_set == placed[0].sharding.device_set
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.ones(3))
    assert placed[1] is None


@pytest.mark.skipif(not IS_JAX, reason="Keras shards variables on JAX alone.")
def test_what_divides_a_variable_stays_when_it_is_placed_like_its_weight():
    weight, slot, whole = (keras.Variable(np.ones((2, 3))) for _ in range(3))
    with current().distribution.distributed(make_distribution()):
        current().distribution.place_variables([weight, slot])
        current().distribution.divide_variable(slot)
        current().distribution.place_like(slot, weight)
        current().distribution.place_like(whole, weight)
    assert slot._layout.axes == (None, "batch")
    assert whole._layout.axes == (None, None)

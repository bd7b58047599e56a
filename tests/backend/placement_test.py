import inspect

import keras
import numpy as np
import pytest

from keras_deepseek.backend import current
from keras_deepseek.errors import InvalidInputError, NotSupportedError

IS_JAX = keras.backend.backend() == "jax"


def make_distribution():
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    return keras.distribution.DataParallel(device_mesh=mesh)


def test_without_a_distribution_a_batch_stays_as_it_is():
    batch = (np.ones(3), None)
    assert current().place_batch(batch) is batch
    assert current().spread_over_devices() is None


def test_a_step_is_not_copied_where_there_is_one_device():
    assert current().replicate_over_devices("allreduce") is None
    with pytest.raises(InvalidInputError, match="received 'any'"):
        current().replicate_over_devices("any")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only TensorFlow copies it.")
def test_copies_of_a_step_take_every_so_many_rows():
    from keras_deepseek.backend.tensorflow.placement import DeviceReplicas

    def compute(rank, batch):
        found.append((rank, batch[0].numpy().tolist(), batch[1]))

        def finish(scalars, receive):
            return [scalars[0] + rank], [keras.ops.sum(batch[0])]

        return [keras.ops.convert_to_tensor(float(rank))], finish

    found = []
    replicas = DeviceReplicas(["CPU:0"] * 3)
    variables = [keras.Variable(0.0)]
    scalars, counts, gradients = replicas.sum(compute, (keras.ops.arange(4), None), variables)
    assert found == [(0, [0, 3], None), (1, [1], None), (2, [2], None)]
    assert [float(each) for each in (*scalars, *counts, *gradients)] == [3.0, 12.0, 6.0]
    assert replicas.count(4.0) == 4.0


@pytest.mark.skipif(IS_JAX, reason="One program of JAX cuts a batch into equal parts.")
def test_copies_of_a_step_take_the_rows_that_they_have_the_time_for():
    def compute(rank, batch):
        found.append((rank, keras.ops.convert_to_numpy(batch[0]).tolist(), batch[1]))

        def finish(scalars, receive):
            return [scalars[0] + rank], [keras.ops.sum(batch[0])]

        return [keras.ops.convert_to_tensor(float(rank))], finish

    found = []
    replicas = current().replicate_over_devices(["cpu:0"] * 3)
    replicas._shares.shares = np.array([0.5, 0.3, 0.2])
    batch = keras.ops.arange(10), None
    for _ in range(4):
        scalars, counts, gradients = replicas.sum(compute, batch, [keras.Variable(0.0)])
        assert [float(each) for each in (*scalars, *counts, *gradients)] == [3.0, 12.0, 45.0]
    assert found[:3] == [(0, [0, 1, 2, 3, 4], None), (1, [5, 6, 7], None), (2, [8, 9], None)]
    assert [row for _, rows, _ in found[9:] for row in rows] == list(range(10))
    assert np.all(replicas._shares._speeds > 0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only it orders operations.")
def test_no_copy_of_a_step_waits_for_the_clock_of_another():
    import tensorflow as tf

    def compute(rank, batch):
        return [keras.ops.sum(batch)], lambda scalars, receive: (scalars, [keras.ops.sum(batch)])

    replicas = current().replicate_over_devices(["CPU:0"] * 2)
    step = tf.function(lambda batch: replicas.sum(compute, batch, []))
    graph = step.get_concrete_function(tf.TensorSpec([None])).graph
    clocks = [each for each in graph.get_operations() if each.type == "PyFuncStateless"]
    assert len(clocks) == 2 * 2 * 2  # Begin and end of each half of a step, on both devices.

    def depends_on(operation):
        waiting, seen = [operation], set()
        while waiting:
            one = waiting.pop()
            for other in (*one.control_inputs, *(tensor.op for tensor in one.inputs)):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    first_halves = clocks[:4]
    for one in first_halves[:2]:
        for other in first_halves[2:]:
            assert one not in depends_on(other)
    assert float(step(tf.range(5.0))[2][0]) == 10.0


@pytest.mark.skipif(not IS_JAX, reason="Only JAX runs one program on all devices.")
def test_one_program_runs_on_devices_of_one_kind():
    assert current().spread_over_devices(["cpu:0"]).device_mesh.shape == (1,)
    with pytest.raises(NotSupportedError, match="runs on devices of one kind"):
        current().spread_over_devices(["cpu:0", "gpu:0"])


def test_where_keras_knows_no_distributions_that_is_said():
    if IS_JAX:
        with current().distributed(make_distribution()):
            assert keras.distribution.distribution() is not None
        assert keras.distribution.distribution() is None
    else:
        with pytest.raises(NotSupportedError, match="Set KERAS_BACKEND=jax"):
            current().distributed(object.__new__(keras.distribution.DataParallel))


def test_variables_made_outside_are_moved():
    variable = keras.Variable(np.ones(3))
    if not IS_JAX:
        current().place_variables([variable])  # There is nowhere else.
        return
    with current().distributed(make_distribution()):
        current().place_variables([variable])
        placed = current().place_batch((np.ones((3, 2)), None))
    assert variable._layout is not None
    assert variable.value.sharding.device_set == placed[0].sharding.device_set
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.ones(3))
    assert placed[1] is None


@pytest.mark.skipif(not IS_JAX, reason="Keras places batches on JAX alone.")
def test_keras_places_a_batch_by_a_function_that_can_be_lent_another():
    """Canary: what `distributed` puts in its place is called with these arguments."""
    from keras.src.backend import distribution_lib

    parameters = inspect.signature(distribution_lib.distribute_data_input).parameters
    assert list(parameters) == ["per_process_batch", "layout", "batch_dim_name"]
    before = distribution_lib.distribute_data_input
    with current().distributed(make_distribution()):
        assert distribution_lib.distribute_data_input is not before
    assert distribution_lib.distribute_data_input is before

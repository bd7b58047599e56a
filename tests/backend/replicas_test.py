import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek.backend import current

ORACLE = Path(__file__).parents[1] / "oracles" / "program_replicas.py"


TIMEOUT = 120


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="One program runs on JAX alone.")
def test_devices_of_one_program_sum_what_they_find_and_keep_what_is_their_own():
    done = subprocess.run(
        [sys.executable, str(ORACLE)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


IS_JAX = keras.backend.backend() == "jax"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only TensorFlow copies it.")
def test_copies_of_a_step_take_every_so_many_rows():
    from keras_deepseek.backend.tensorflow.replicas import DeviceReplicas

    def compute(rank, batch):
        calls.append((rank, batch[0].numpy().tolist(), batch[1]))

        def finish(scalars, receive):
            return [scalars[0] + rank], [keras.ops.sum(batch[0])]

        return [keras.ops.convert_to_tensor(float(rank))], finish

    calls = []
    replicas = DeviceReplicas(["CPU:0"] * 3)
    variables = [keras.Variable(0.0)]
    scalars, counts, gradients = replicas.sum(compute, (keras.ops.arange(4), None), variables)
    assert calls == [(0, [0, 3], None), (1, [1], None), (2, [2], None)]
    assert [float(tensor) for tensor in (*scalars, *counts, *gradients)] == [3.0, 12.0, 6.0]
    assert replicas.add_up(4.0) == 4.0


@pytest.mark.skipif(IS_JAX, reason="One program of JAX cuts a batch into equal parts.")
def test_copies_of_a_step_take_the_rows_that_they_have_the_time_for():
    def compute(rank, batch):
        calls.append((rank, keras.ops.convert_to_numpy(batch[0]).tolist(), batch[1]))

        def finish(scalars, receive):
            return [scalars[0] + rank], [keras.ops.sum(batch[0])]

        return [keras.ops.convert_to_tensor(float(rank))], finish

    calls = []
    replicas = current().distribution.replicate_over_devices(["cpu:0"] * 3)
    replicas._shares.shares = np.array([0.5, 0.3, 0.2])
    batch = keras.ops.arange(10), None
    for _ in range(4):
        scalars, counts, gradients = replicas.sum(compute, batch, [keras.Variable(0.0)])
        assert [float(tensor) for tensor in (*scalars, *counts, *gradients)] == [3.0, 12.0, 45.0]
    assert calls[:3] == [(0, [0, 1, 2, 3, 4], None), (1, [5, 6, 7], None), (2, [8, 9], None)]
    assert [row for _, rows, _ in calls[9:] for row in rows] == list(range(10))
    assert np.all(replicas._shares._speeds > 0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Only it orders operations.")
def test_no_copy_of_a_step_waits_for_the_clock_of_another():
    import tensorflow as tf

    def compute(rank, batch):
        return [keras.ops.sum(batch)], lambda scalars, receive: (scalars, [keras.ops.sum(batch)])

    replicas = current().distribution.replicate_over_devices(["CPU:0"] * 2)
    step = tf.function(lambda batch: replicas.sum(compute, batch, []))
    graph = step.get_concrete_function(tf.TensorSpec([None])).graph
    clocks = [
        operation for operation in graph.get_operations() if operation.type == "PyFuncStateless"
    ]
    assert len(clocks) == 2 * 2 * 2  # Begin and end of each half of a step, on both devices.

    def depends_on(operation):
        waiting, inputs = [operation], set()
        while waiting:
            current_operation = waiting.pop()
            for other in (
                *current_operation.control_inputs,
                *(tensor.op for tensor in current_operation.inputs),
            ):
                if other not in inputs:
                    inputs.add(other)
                    waiting.append(other)
        return inputs

    first_halves = clocks[:4]
    for clock in first_halves[:2]:
        for other_clock in first_halves[2:]:
            assert clock not in depends_on(other_clock)
    assert float(step(tf.range(5.0))[2][0]) == 10.0

"""A step of JAX on four virtual devices of one process, as its parts are summed.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python tests/oracles/program_replicas.py

It ends with 0 where all is as it should be.
"""

from typing import Any

import jax
import keras
import numpy as np
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.backend.jax.distribution import place_batch
from keras_deepseek.backend.jax.replicas import JaxReplicas
from keras_deepseek.backend.processes.gradient_compression import Compression, begin_residual

NUM_DEVICES = 4
SHAPE = (3, 5)
VALUES = np.linspace(1.0, 2.0, 15, dtype="float32").reshape(SHAPE)
WEIGHTS = [keras.Variable(VALUES)]
COUNT = keras.Variable(0, dtype="int32")


def compute(rank: Any, rows: Any) -> Any:
    """Returns the sum of a part's rows and its number, and gradients that differ by device."""
    COUNT.assign(COUNT + 1)

    def finish(scalars: Any, receive: Any) -> Any:
        return [ops.ones(())], [ops.sum(rows) * WEIGHTS[0] / scalars[0]]

    return [ops.sum(rows), ops.cast(rank, "float32")], finish


def check_sums(replicas: JaxReplicas) -> None:
    for num_rows in (8, 7):  # Of 7 each device computes all.
        old_count = int(COUNT)
        scalars, counts, gradients = replicas.sum(compute, ops.arange(num_rows), WEIGHTS)
        is_divided = num_rows == 8
        total = num_rows * (num_rows - 1) / 2
        assert float(scalars[0]) == total
        assert float(scalars[1]) == (6.0 if is_divided else 0.0)
        assert float(counts[0]) == (NUM_DEVICES if is_divided else 1)
        np.testing.assert_allclose(gradients[0], VALUES, rtol=1e-6)
        assert int(COUNT) == old_count + 1  # The same on each, and not added up.
    assert replicas.add_up(7) == 7


def check_own_variables(replicas: JaxReplicas) -> None:
    begin = begin_residual("bfloat16", [SHAPE])
    residual = replicas.own_variable(begin, "residual")
    assert residual.shape == (NUM_DEVICES * begin.size,)
    assert not residual.value.sharding.is_fully_replicated
    values = np.arange(NUM_DEVICES * begin.size, dtype="float32")
    replicas.write_own(residual, values)
    np.testing.assert_array_equal(replicas.read_own(residual), values)

    replicas.write_own(residual, np.zeros_like(values))
    compression = Compression("bfloat16", residual, 1.0)
    rows = ops.convert_to_tensor(np.linspace(1.0, 2.0, 8, dtype="float32"))
    compressed = replicas.sum_compressed(compute, rows, WEIGHTS, compression)
    assert not np.any(replicas.read_own(residual))  # Before it is kept.
    compressed[3]()
    total_residual = replicas.read_own(residual).reshape(NUM_DEVICES, -1).sum(0).reshape(SHAPE)
    assert np.any(total_residual)
    np.testing.assert_allclose(compressed[2][0] + total_residual, VALUES, rtol=1e-6)
    old_residual = replicas.read_own(residual)
    *_, gradients, keep = replicas.sum_compressed(compute, rows[:7], WEIGHTS, compression)
    keep()
    np.testing.assert_array_equal(replicas.read_own(residual), old_residual)
    np.testing.assert_allclose(gradients[0], VALUES, rtol=1e-6)


def check_a_step_is_awaited() -> None:
    """Steps of CPUs that are begun and not awaited would wait for each other for ever."""

    def compute_long(x: Any) -> Any:
        return jax.lax.fori_loop(0, 300, lambda _, x: ops.sin(x) + ops.mean(x), x)

    model = keras.Sequential([keras.Input((10_000,)), keras.layers.Lambda(compute_long)])
    with current().distribution.distributed(keras.distribution.DataParallel()):
        model.make_predict_function()
        batch = place_batch(np.ones((8, 10_000), "float32"))
        outputs, _ = model.predict_function(([], []), iter([(batch,)]))
        assert len(outputs.sharding.device_set) == NUM_DEVICES
        assert outputs.is_ready()


def main() -> None:
    assert jax.device_count() == NUM_DEVICES
    replicas = JaxReplicas()
    check_sums(replicas)
    check_own_variables(replicas)
    check_a_step_is_awaited()


if __name__ == "__main__":
    main()

"""Sums of gradients over several processes, compressed on their way: FOLDER.

Each rank writes what the sums have come to, and what it knows of them itself.
"""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.processes.gradient_compression import (
    Compression,
    Kind,
    LowRank,
    begin_residual,
)
from keras_deepseek.backend.processes.processes import RemoteReplicas
from keras_deepseek.training import join_cluster
from keras_deepseek.training.cluster.start_processes import start_processes

KINDS: dict[str, Kind] = {"bfloat16": "bfloat16", "float16": "float16", "low rank": LowRank()}


def compress_gradients(
    replicas: RemoteReplicas, rank: int, world_size: int, name: str, kind: Kind
) -> dict[str, Any]:
    """Returns what 16 sums of compressed gradients add up to, and what one rank knows of it."""
    rng = np.random.default_rng(rank)
    # In several buckets, of which one has odd and unequal parts.
    shapes = [(1_100_001,), (6,), (3, 6), (40, 3, 25), (30, 50)]
    size = sum(int(np.prod(shape)) for shape in shapes)
    residual = replicas.own_variable(begin_residual(kind, shapes), "residual")
    variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
    compression = Compression(kind, residual, 4.0)
    summed, expected = np.zeros(size), np.zeros(size)

    def flatten(arrays: list[Any]) -> Any:
        return np.concatenate([array.ravel() for array in arrays[::-1]])

    def add(gradients: list[Any], *, is_kept: bool = True) -> Any:
        def finish(scalars: Any, receive: Any) -> Any:
            tensors = [4.0 * keras.ops.divide(gradient, scalars[0]) for gradient in gradients]
            if receive is not None:  # Of some, and in another order than on the other rank.
                receive(2 * rank, tensors[2 * rank])
            return scalars, tensors

        (count,), (counts,), sums, keep = replicas.sum_compressed(
            lambda rank, batch: ([keras.ops.ones(())], finish), None, variables, compression
        )
        assert [float(count), float(counts)] == [world_size, world_size**2]
        if is_kept:
            keep()
        assert [tuple(gradient_sum.shape) for gradient_sum in sums] == shapes
        return flatten([keras.ops.convert_to_numpy(gradient_sum) for gradient_sum in sums])

    for _ in range(16):
        gradients = [rng.normal(1.0, 1e-4, shape).astype("float32") for shape in shapes]
        gradients[1] *= 1e-12  # Beside others float16 has nothing so small.
        expected += flatten(gradients)
        summed += add(gradients)
    old_residual = replicas.read_own(residual)
    large = [np.full(shape, 3e38 / 4, "float32") for shape in shapes]
    largest = add(large, is_kept=False)
    bad = [gradient.copy() for gradient in gradients]
    bad[3][1, 2, 3] = np.inf if rank else np.nan
    return {
        f"{name}/summed": summed,
        f"{name}/given": expected,
        f"{name}/residual": old_residual[:size],
        f"{name}/is left alone": np.array_equal(old_residual, replicas.read_own(residual)),
        f"{name}/largest": largest[-7_919:],
        f"{name}/bad": np.isfinite(add(bad, is_kept=False)[:4_500]),
    }


def main() -> None:
    processes = start_processes(join_cluster())
    assert processes.replicas is not None
    results: dict[str, Any] = {}
    for name, kind in KINDS.items():
        results |= compress_gradients(
            processes.replicas, processes.rank, processes.world_size, name, kind
        )
    np.savez(Path(sys.argv[1]) / f"{processes.rank}.npz", **results)


if __name__ == "__main__":
    main()

"""Claims of `SparseAttention` over long sequences, on the CPU, in one thread.

At 8,192 positions it is at least 12 times faster than dense attention by einsum and 3 times faster
than `keras.ops.dot_product_attention` (on torch: its flash kernel), and twice the length costs at
most 2.3 times as much.

Each backend runs in its usual compiled form: TensorFlow in a graph, JAX under jit, torch eagerly as
Keras runs it. Only attention is timed, without projections: 1 sequence, 4 heads of 64, causal; ours
with a window of one block of 64 and one global block. The rivals take turns, and the numbers are
medians. Prints a table and writes the numbers as JSON:

    KERAS_BACKEND=torch python benchmarks/attention.py [--longest 16384] [--json RESULT.json]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    " --xla_force_host_platform_device_count=1"
)

import keras
import numpy as np
from keras import ops

from keras_deepseek.layers.attention.block_layout import BlockLayout
from keras_deepseek.layers.attention.block_plan import plan_blocks
from keras_deepseek.layers.attention.block_sparse_attention import block_sparse_attention

NUM_HEADS, DIM, BLOCK_SIZE = 4, 64, 64
LAYOUT = BlockLayout(BLOCK_SIZE, is_causal=True, sliding_window=BLOCK_SIZE + 1, global_blocks=(0,))
DENSE, KERAS, OURS = "dense einsum", "dot_product_attention", "SparseAttention"
DIRECTIONS = ("forward", "forward and backward")
TARGETS = {"times faster than dense": 12, "times faster than Keras's": 3, "cost of doubling": 2.3}
Function = Callable[..., Any]


def dense(query: Any, key: Any, value: Any) -> Any:
    scores = ops.einsum("bqhd,bkhd->bhqk", query * DIM**-0.5, key)
    positions = np.arange(query.shape[1], dtype="int32")
    scores = ops.where(ops.less_equal(positions, positions[:, None]), scores, -1e9)
    return ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), value)


def by_keras(query: Any, key: Any, value: Any) -> Any:
    return ops.dot_product_attention(query, key, value, is_causal=True)


def sparse(query: Any, key: Any, value: Any) -> Any:
    return block_sparse_attention(query, key, value, plan_blocks(LAYOUT, query.shape[1]))


def compile_tensorflow(function: Function) -> tuple[Function, Function]:
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # Each length is traced anew, on purpose.

    @tf.function
    def gradients(*arrays: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            total = ops.sum(ops.square(function(*arrays)))
        return tape.gradient(total, arrays)

    forward = tf.function(function)
    return lambda *x: forward(*x).numpy(), lambda *x: [y.numpy() for y in gradients(*x)]


def compile_jax(function: Function) -> tuple[Function, Function]:
    import jax

    forward = jax.jit(function)
    gradients = jax.jit(jax.grad(lambda arrays: ops.sum(ops.square(function(*arrays)))))
    return (
        lambda *x: jax.block_until_ready(forward(*x)),
        lambda *x: jax.block_until_ready(gradients(x)),
    )


def compile_torch(function: Function) -> tuple[Function, Function]:
    import torch

    torch.set_num_threads(1)

    def gradients(*arrays: Any) -> Any:
        leaves = [array.clone().requires_grad_() for array in arrays]
        return torch.autograd.grad(ops.sum(ops.square(function(*leaves))), leaves)

    return torch.no_grad()(function), gradients


COMPILE = {"tensorflow": compile_tensorflow, "jax": compile_jax, "torch": compile_torch}


def measure(length: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds of process time, by direction and rival."""
    rng = np.random.default_rng(0)
    shape = (1, length, NUM_HEADS, DIM)
    arrays = [ops.convert_to_tensor(rng.normal(size=shape).astype("float32")) for _ in range(3)]
    rivals = {DENSE: dense, KERAS: by_keras, OURS: sparse}
    compiled = {name: COMPILE[keras.backend.backend()](rival) for name, rival in rivals.items()}
    spent: dict[str, dict[str, list[float]]] = {d: {n: [] for n in rivals} for d in DIRECTIONS}
    for turn in range(rounds + 1):
        for name, functions in compiled.items():
            for direction, function in zip(DIRECTIONS, functions, strict=True):
                start = time.process_time()
                function(*arrays)
                if turn:  # The first compiles.
                    spent[direction][name].append((time.process_time() - start) * 1e3)
    return {
        direction: {name: statistics.median(times) for name, times in by_name.items()}
        for direction, by_name in spent.items()
    }


def judge(results: dict[int, dict[str, dict[str, float]]], at: int) -> dict[str, dict[str, float]]:
    """Returns the three claims' numbers at a length, by direction."""
    claims = {}
    for direction in DIRECTIONS:
        here, half = results[at][direction], results[at // 2][direction]
        numbers = (here[DENSE] / here[OURS], here[KERAS] / here[OURS], here[OURS] / half[OURS])
        claims[direction] = dict(zip(TARGETS, numbers, strict=True))
    return claims


def main() -> int:
    parser = argparse.ArgumentParser(description="Sparse against dense attention.")
    parser.add_argument("--longest", type=int, default=8192, help="largest length, a power of two")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    backend = keras.backend.backend()
    print(
        f"{backend}, keras {keras.__version__}, Python {platform.python_version()}, one thread, ms"
    )
    print(f"{'length':>6}  {'':22}{DENSE:>14}{KERAS:>24}{OURS:>18}{'faster':>18}")
    results, length = {}, 1024
    while length <= arguments.longest:
        results[length] = measure(length, arguments.rounds)
        for direction, times in results[length].items():
            ratios = f"{times[DENSE] / times[OURS]:.1f}, {times[KERAS] / times[OURS]:.1f} times"
            print(
                f"{length:>6}  {direction:22}{times[DENSE]:>14.1f}{times[KERAS]:>24.1f}"
                f"{times[OURS]:>18.1f}{ratios:>18}",
                flush=True,
            )
        length *= 2
    at = length // 2
    claims, holds = judge(results, at), True
    for direction, numbers in claims.items():
        for claim, number in numbers.items():
            target = TARGETS[claim]
            is_met = number <= target if "cost" in claim else number >= target
            holds &= is_met
            print(
                f"At {at}, {direction}: {claim} {number:.2f} (target {target}): "
                f"{'holds' if is_met else 'DOES NOT HOLD'}"
            )
    if arguments.json:
        text = {"backend": backend, "milliseconds": results, "claims": claims, "targets": TARGETS}
        arguments.json.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

"""What a mixture of experts costs, beside a dense layer of equal active size and a loop.

`DeepSeekMoE` is compared with a `SwiGLU` of the width that one token uses (what a mixture can come
near to at best), and with the usual loop over experts, in which every expert computes every token
and is weighed by zero where it was not chosen (what needs no dispatch). Forward, and with backward
as one step of plain SGD, each backend in its compiled form; torch as it is without `--compile`. The
variants take turns, and the medians are of wall-clock time.

    KERAS_BACKEND=jax python benchmarks/moe.py [RESULT.json] [--compile]
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

from keras_deepseek.layers import DeepSeekMoE, ExpertRouter, SwiGLU

DIM, EXPERT_DIM = 256, 256
SETTINGS = [(16, 2, 16), (16, 2, 2048), (64, 6, 1), (64, 6, 2048)]  # Experts, per token, tokens.
RUNS = 7


class LoopOverExperts(keras.layers.Layer):
    """Every expert on every token, one after the other."""

    def __init__(self, num_experts: int, num_experts_per_token: int) -> None:
        super().__init__()
        self.router = ExpertRouter(num_experts, num_experts_per_token)
        self.experts = [SwiGLU(EXPERT_DIM) for _ in range(num_experts)]

    def build(self, input_shape: Any) -> None:
        self.router.build(input_shape)
        for expert in self.experts:
            expert.build(input_shape)

    def call(self, inputs: Any) -> Any:
        weights, indices = self.router(inputs)
        outputs = ops.zeros_like(inputs)
        for number, expert in enumerate(self.experts):
            hits = ops.cast(ops.equal(indices, number), weights.dtype)
            weight = ops.sum(weights * hits, axis=-1, keepdims=True)
            outputs = outputs + weight * expert(inputs)
        return outputs


def make_layers(num_experts: int, per_token: int) -> dict[str, keras.layers.Layer]:
    return {
        "DeepSeekMoE": DeepSeekMoE(
            ExpertRouter(num_experts, per_token), EXPERT_DIM, num_shared_experts=0
        ),
        "dense": SwiGLU(EXPERT_DIM * per_token),
        "loop": LoopOverExperts(num_experts, per_token),
    }


def make_actions(layer: keras.layers.Layer, num_tokens: int) -> dict[str, Callable[[], Any]]:
    """Returns functions of no argument that run compiled, after running each once."""
    model = keras.Sequential([keras.Input(batch_shape=(num_tokens, DIM)), layer])
    compiles = keras.backend.backend() != "torch" or "--compile" in sys.argv
    model.compile(keras.optimizers.SGD(1e-6), "mse", jit_compile=compiles)
    x = np.random.default_rng(0).normal(size=(num_tokens, DIM)).astype("float32")
    actions: dict[str, Callable[[], Any]] = {
        "forward": lambda: model.predict_on_batch(x),
        "backward": lambda: model.train_on_batch(x, x),
    }
    for action in actions.values():
        action()
    return actions


def measure(num_experts: int, per_token: int, num_tokens: int) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds by pass and layer."""
    layers = make_layers(num_experts, per_token)
    actions = {name: make_actions(layer, num_tokens) for name, layer in layers.items()}
    medians: dict[str, dict[str, float]] = {}
    for direction in ("forward", "backward"):
        times: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(RUNS):
            for name, by_direction in actions.items():
                start = time.perf_counter()
                by_direction[direction]()
                times[name].append((time.perf_counter() - start) * 1000)
        medians[direction] = {name: statistics.median(series) for name, series in times.items()}
    return medians


def main() -> int:
    print(f"{keras.backend.backend()}, dim {DIM}, experts of {EXPERT_DIM}; ms, median of {RUNS}")
    header = f"{'experts':>7}{'of them':>8}{'tokens':>7}  {'':10}"
    print(header + "".join(f"{name:>13}" for name in ("DeepSeekMoE", "dense", "loop")))
    results = []
    for setting in SETTINGS:
        for direction, medians in measure(*setting).items():
            experts, per_token, tokens = setting
            row = f"{experts:>7}{per_token:>8}{tokens:>7}  {direction:10}"
            print(row + "".join(f"{value:>13.2f}" for value in medians.values()), flush=True)
            names = ("num_experts", "num_experts_per_token", "num_tokens")
            settings = dict(zip(names, setting, strict=True))
            results.append({**settings, "pass": direction, "milliseconds": medians})
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if paths:
        result = {"backend": keras.backend.backend(), "runs": RUNS, "results": results}
        Path(paths[0]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

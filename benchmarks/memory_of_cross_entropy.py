"""What `ChunkedCrossEntropy` saves in memory and costs in time, beside a `Dense` layer and a loss.

One step over 4,096 tokens of 256 numbers each and 32,768 classes, whose logits alone take 512 MB.
"gradient" is the loss and its gradients by the hidden states and by the kernel, "fit" a step of
SGD by Keras's own training. Each backend runs in its usual compiled forms: torch eagerly, JAX under
jit, TensorFlow in a graph and under XLA.

Each row is a process of its own, in one thread. The memory is what the process held at the most
during a step, less what it held before the first; it is exact, for the system counts it (on Linux
alone), and malloc is told to hand large blocks back at once. The time is the median of the steps,
in seconds of the processor. The ratios are those to "plain". Computing the logits anew in the
backward pass explains four thirds of the time: four products of matrices, where there were three.

    KERAS_BACKEND=jax python benchmarks/memory_of_cross_entropy.py [RESULT.json]
"""

import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH_SIZE, LENGTH, DIM, VOCABULARY_SIZE = 4, 1024, 256, 32_768
FORMS = {"torch": ["eager"], "jax": ["jit"], "tensorflow": ["graph", "XLA"]}
KINDS, HEADS = ("gradient", "fit"), ("plain", "chunked")
RUNS = 3
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**20),
}
Step = Callable[[], Any]


def draw() -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH_SIZE, LENGTH, DIM)).astype("float32")
    return hidden, rng.integers(0, VOCABULARY_SIZE, (BATCH_SIZE, LENGTH)).astype("int32")


def make_fit(head: str, form: str) -> Step:
    """Returns a step of training: a dense layer for a body, and the head."""
    import keras

    from keras_deepseek.layers import ChunkedCrossEntropy

    hidden, targets = draw()
    compiling = {"optimizer": keras.optimizers.SGD(1e-3), "jit_compile": form in ("jit", "XLA")}
    inputs = keras.Input((LENGTH, DIM))
    body = keras.layers.Dense(DIM)(inputs)
    if head == "plain":
        outputs = keras.layers.Dense(VOCABULARY_SIZE, use_bias=False)(body)
        model = keras.Model(inputs, outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(loss=loss, **compiling)
        return lambda: model.train_on_batch(hidden, targets)
    labels = keras.Input((LENGTH,), dtype="int32")
    outputs = ChunkedCrossEntropy(VOCABULARY_SIZE)(body, labels)
    model = keras.Model([inputs, labels], outputs)
    model.compile(**compiling)
    return lambda: model.train_on_batch([hidden, targets])


def make_gradient(head: str, form: str) -> Step:
    """Returns the computation of the loss and its gradients, without a model around it."""
    import keras
    from keras import ops

    from keras_deepseek.layers import ChunkedCrossEntropy

    hidden, targets = (ops.convert_to_tensor(array) for array in draw())
    layer = ChunkedCrossEntropy(VOCABULARY_SIZE)
    layer.build(hidden.shape)

    def compute_loss(hidden: Any, kernel: Any) -> Any:
        if head == "chunked":
            with keras.StatelessScope(state_mapping=[(layer.kernel, kernel)]):
                return ops.mean(layer.compute_losses(hidden, targets))
        logits = ops.matmul(hidden, kernel)
        return ops.mean(
            keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
        )

    return differentiate(compute_loss, [hidden, ops.copy(layer.kernel)], form)


def differentiate(function: Callable[..., Any], tensors: list[Any], form: str) -> Step:
    if form == "eager":
        import torch

        sources = [tensor.detach().requires_grad_() for tensor in tensors]
        return lambda: torch.autograd.grad(function(*sources), sources)
    if form == "jit":
        import jax

        compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        return lambda: jax.block_until_ready(compiled(*tensors))
    import tensorflow as tf

    @tf.function(jit_compile=form == "XLA")
    def run(*sources: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(sources)
            loss = function(*sources)
        return loss, tape.gradient(loss, sources)

    return lambda: run(*tensors)


def read_status(name: str) -> float:
    """Returns a figure that Linux has on this process, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kibibytes,) = re.findall(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(kibibytes) / 1024


def measure(kind: str, head: str, form: str) -> dict[str, float]:
    step = {"gradient": make_gradient, "fit": make_fit}[kind](head, form)
    gc.collect()
    before = read_status("VmRSS")
    step()  # Compiles. What it leaves behind counts: TensorFlow keeps its memory for the next step.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # The peak starts anew.
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return {"megabytes": read_status("VmHWM") - before, "seconds": statistics.median(seconds)}


def run_row(backend: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--row", *arguments]
    environment = {**os.environ, **ENVIRONMENT, "KERAS_BACKEND": backend}
    finished = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(finished.stderr)
    row: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return row


def main() -> int:
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(measure(*sys.argv[2:])))
        return 0
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    print(f"{backend}: {BATCH_SIZE * LENGTH} tokens of {DIM}, {VOCABULARY_SIZE} classes")
    print(f"{'':9}{'':6}  {'':8}{'MB':>7}{'ratio':>7}{'s':>8}{'ratio':>7}")
    results = []
    for form in FORMS[backend]:
        for kind in KINDS:
            plain: dict[str, float] = {}
            for head in HEADS:
                row = run_row(backend, kind, head, form)
                plain = plain or row
                ratios = {name: row[name] / plain[name] for name in row}
                print(
                    f"{kind:9}{form:6}  {head:8}{row['megabytes']:7.0f}{ratios['megabytes']:7.2f}"
                    f"{row['seconds']:8.2f}{ratios['seconds']:7.2f}",
                    flush=True,
                )
                results.append({"kind": kind, "form": form, "head": head, **row})
    if sys.argv[1:]:
        result = {"backend": backend, "runs": RUNS, "results": results}
        Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

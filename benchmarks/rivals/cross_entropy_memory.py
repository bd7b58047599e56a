"""The process of one row of `memory_of_cross_entropy.py`: prints its memory and its time as JSON.

A step over 4,096 tokens of 256 numbers each and 32,768 classes, whose logits alone take 512 MB.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from peak_memory import measure_peak

from keras_deepseek.layers import ChunkedCrossEntropy

BATCH_SIZE, LENGTH, DIM, VOCABULARY_SIZE = 4, 1024, 256, 32_768
Step = Callable[[], Any]


def draw() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH_SIZE, LENGTH, DIM)).astype("float32")
    return hidden, rng.integers(0, VOCABULARY_SIZE, (BATCH_SIZE, LENGTH)).astype("int32")


def make_fit(head: str, form: str) -> Step:
    """Returns a step of training: a dense layer for a body, and the head."""
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


def main() -> int:
    kind, head, form, rounds = sys.argv[1:]
    make_step = {"gradient": make_gradient, "fit": make_fit}[kind]
    result = measure_peak(lambda: make_step(head, form), int(rounds), counts_model=False)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

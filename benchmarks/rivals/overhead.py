"""Ways to make the same steps of training: the bare compiled step, Keras's `fit`, and `Trainer`."""

import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_deepseek.training import Trainer

BATCH_SIZE, DIM, NUM_CLASSES, LEARNING_RATE = 32, 64, 10, 1e-3


def make_rivals(
    width: int, num_steps: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, str]]]:
    """Returns the rivals, each of which makes so many steps, and which are left out and why."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH_SIZE * num_steps, DIM)).astype("float32")
    y = rng.integers(0, NUM_CLASSES, BATCH_SIZE * num_steps).astype("int32")
    backend = keras.backend.backend()
    bare = {"jax": _bare_jax, "tensorflow": _bare_tensorflow, "torch": _bare_torch}[backend]
    plain = build(width)
    plain.compile(keras.optimizers.Adam(LEARNING_RATE), loss())
    trainer = Trainer(
        build(width),
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=loss(),
        tune_malloc=True,
    )
    options = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}
    rivals = {
        "bare step": bare(build(width), x, y),
        "model.fit": lambda: plain.fit(x, y, **options),
        "Trainer.fit": lambda: trainer.fit(x, y, **options),
    }
    skipped = {}
    if backend == "torch":
        if importlib.util.find_spec("lightning"):
            rivals["Lightning"] = _lightning(build(width), x, y)
        else:
            skipped["Lightning"] = "not installed"
    return rivals, {"skipped": skipped}


def build(width: int) -> keras.Model:
    layers = keras.layers
    hidden = [layers.Dense(width, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((DIM,)), *hidden, layers.Dense(NUM_CLASSES)])


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _batches(x: Any, y: Any) -> list[tuple[Any, Any]]:
    starts = range(0, len(x), BATCH_SIZE)
    return [(x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]) for start in starts]


def _bare_jax(model: keras.Model, x: Any, y: Any) -> Callable[[], Any]:
    import jax

    optimizer, compute_loss = keras.optimizers.Adam(LEARNING_RATE), loss()
    optimizer.build(model.trainable_variables)
    fixed = [variable.value for variable in model.non_trainable_variables]

    def compute(weights: Any, x: Any, y: Any) -> Any:
        outputs, _ = model.stateless_call(weights, fixed, x, training=True)
        return compute_loss(y, outputs)

    def step(weights: Any, slots: Any, x: Any, y: Any) -> Any:
        value, gradients = jax.value_and_grad(compute)(weights, x, y)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return value, weights, slots

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state = [
        [jax.numpy.array(variable.value) for variable in variables]
        for variables in (model.trainable_variables, optimizer.variables)
    ]
    batches = _batches(x, y)

    def run() -> None:
        for batch in batches:
            value, *state[:] = compiled(*state, *batch)
        jax.block_until_ready(value)

    return run


def _bare_tensorflow(model: keras.Model, x: Any, y: Any) -> Callable[[], Any]:
    import tensorflow as tf

    optimizer, compute_loss = keras.optimizers.Adam(LEARNING_RATE), loss()
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, compute_loss)

    @tf.function(jit_compile=model.jit_compile)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = compute_loss(y, model(x, training=True))
        variables = model.trainable_variables
        gradients = tape.gradient(value, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return value

    batches = [(tf.constant(inputs), tf.constant(labels)) for inputs, labels in _batches(x, y)]

    def run() -> None:
        for batch in batches:
            value = step(*batch)
        value.numpy()

    return run


def _bare_torch(model: keras.Model, x: Any, y: Any) -> Callable[[], Any]:
    import torch

    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    batches = [
        (torch.from_numpy(inputs), torch.from_numpy(labels).long())
        for inputs, labels in _batches(x, y)
    ]

    def run() -> None:
        for inputs, labels in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs, training=True), labels).backward()
            optimizer.step()

    return run


def _lightning(model: keras.Model, x: Any, y: Any) -> Callable[[], Any]:
    import lightning
    import torch

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Any:
            inputs, labels = batch
            value = torch.nn.functional.cross_entropy(self.model(inputs, training=True), labels)
            self.log("loss", value)
            return value

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), LEARNING_RATE, fused=True)

    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y).long())
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH_SIZE)
    module = Module()

    def run() -> None:
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)

    return run

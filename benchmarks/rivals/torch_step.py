"""Ways to run the same model on PyTorch: plain PyTorch, its compiler, Lightning, Keras, `Trainer`.

Each model is written twice, in Keras and in PyTorch, with the same weights.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch
from torch import nn
from torch_step_images import IMAGE_MODELS
from torch_step_models import MODELS, NUM_CLASSES, copy_weights

from keras_deepseek.inference.executors.keras_model import KerasModel
from keras_deepseek.training import Trainer

IMAGE_RANK = 4
OPTIMIZER = {"learning_rate": 1e-3, "weight_decay": 1e-2}
PLAIN, COMPILED, LIGHTNING = "plain PyTorch", "torch.compile", "Lightning"
CHANNELS_LAST = "plain PyTorch, channels_last"
KERAS_FIT, OURS_FIT = "Keras fit", "Trainer.fit"
KERAS_PREDICT, OURS_PREDICT, SERVED = "Keras predict", "Trainer.predict", "served"

Run = Callable[[], Any]


def make_rivals(
    model: str, num_steps: int, *, trains: bool, compiles: bool
) -> tuple[dict[str, Run], dict[str, Any]]:
    """Returns the rivals, each of which goes over so many batches, and facts about them.

    Args:
        model: string. The model, a key of `MODELS`.
        num_steps: integer. The batches.
        trains: boolean. They train; otherwise they predict.
        compiles: boolean. `torch.compile` is a rival.
    """
    form = (MODELS | IMAGE_MODELS)[model]
    size = form.batch_size
    rng = np.random.default_rng(0)
    x = form.make_inputs(rng, size * num_steps)
    y = rng.integers(0, NUM_CLASSES, len(x))
    keras_models, modules = [form.build() for _ in range(2)], [form.module() for _ in range(4)]
    for module in modules:
        copy_weights(keras_models[0], module)
    keras_models[1].set_weights(keras_models[0].get_weights())
    facts = compare(keras_models[0], modules[0], x[:size], y[:size])
    plain, compiled, in_lightning, channels_last = modules
    batches = [
        (prepare(x[start : start + size]), torch.from_numpy(y[start : start + size]))
        for start in range(0, len(x), size)
    ]
    make_run = train_plainly if trains else predict_plainly
    rivals = {PLAIN: make_run(plain, batches)}
    if x.ndim == IMAGE_RANK:
        last = torch.channels_last
        as_last = [(inputs.to(memory_format=last), labels) for inputs, labels in batches]
        rivals[CHANNELS_LAST] = make_run(channels_last.to(memory_format=last), as_last)
    if compiles:
        rivals[COMPILED] = make_run(torch.compile(compiled), batches)
    facts["skipped"] = {}
    if trains and importlib.util.find_spec("lightning"):
        rivals[LIGHTNING] = train_in_lightning(in_lightning, batches)
    elif trains:
        facts["skipped"][LIGHTNING] = "not installed"
    rivals |= _fits(keras_models, x, y, size) if trains else _predictions(keras_models, x, size)
    return rivals, facts


def _fits(models: Sequence[keras.Model], x: Any, y: Any, batch_size: int) -> dict[str, Run]:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    models[0].compile(keras.optimizers.AdamW(**OPTIMIZER), loss)
    optimizer = keras.optimizers.AdamW(**OPTIMIZER)
    trainer = Trainer(models[1], optimizer=optimizer, loss=loss, tune_malloc=True)
    options = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    return {
        KERAS_FIT: lambda: models[0].fit(x, y, **options),
        OURS_FIT: lambda: trainer.fit(x, y, **options),
    }


def _predictions(models: Sequence[keras.Model], x: Any, batch_size: int) -> dict[str, Run]:
    trainer = Trainer(models[1], optimizer="adamw", loss="mse")
    executor = KerasModel(models[1])
    batches = [{"x": x[start : start + batch_size]} for start in range(0, len(x), batch_size)]
    options = {"batch_size": batch_size, "verbose": 0}
    return {
        KERAS_PREDICT: lambda: models[0].predict(x, **options),
        OURS_PREDICT: lambda: trainer.predict(x, **options),
        SERVED: lambda: [executor.run(batch) for batch in batches],
    }


def prepare(x: Any) -> torch.Tensor:
    """Returns a batch as PyTorch's modules take it: images with their channels first."""
    is_image = x.ndim == IMAGE_RANK
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if is_image else x)


def train_plainly(module: nn.Module, batches: Sequence[Any]) -> Run:
    optimizer = make_optimizer(module)

    def run() -> None:
        for inputs, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs), labels).backward()
            optimizer.step()

    return run


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    rate, decay = OPTIMIZER["learning_rate"], OPTIMIZER["weight_decay"]
    return torch.optim.AdamW(module.parameters(), rate, weight_decay=decay, fused=True)


def predict_plainly(module: nn.Module, batches: Sequence[Any]) -> Run:
    module.eval()

    def run() -> None:
        with torch.inference_mode():
            for inputs, _ in batches:
                module(inputs).numpy()

    return run


def train_in_lightning(module: nn.Module, batches: Sequence[Any]) -> Run:
    import lightning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def training_step(self, batch: Any, index: int) -> Any:
            return nn.functional.cross_entropy(self.module(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return make_optimizer(self)

    lightning_module = Module()
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {"max_epochs": 1, "accelerator": "cpu", **dict.fromkeys(names, False)}
    return lambda: lightning.Trainer(**options).fit(lightning_module, loader)


def compare(model: keras.Model, module: nn.Module, x: Any, y: Any) -> dict[str, Any]:
    """Returns the losses of a batch in both forms, or fails if they differ by more than rounding.

    They train: a batch normalization uses the batch's statistics.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weights = model.get_weights()
    losses = {"Keras": float(loss(y, model(x, training=True)))}
    model.set_weights(weights)  # A batch normalization has assigned its means.
    outputs = module(prepare(x))
    losses[PLAIN] = float(nn.functional.cross_entropy(outputs, torch.from_numpy(y)))
    copy_weights(model, module)
    np.testing.assert_allclose(losses[PLAIN], losses["Keras"], rtol=1e-5)
    return {"losses": losses}

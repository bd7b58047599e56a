"""The process of one training whose memory is measured: prints its numbers as JSON.

python benchmarks/rivals/memory.py pretraining '{"trains_by": "Trainer", ...}'
python benchmarks/rivals/memory.py accuracy '{"precision": "bfloat16", "seed": 0}'
"""

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import keras
import masked_text
from bert import Shape, build
from masked_text import Documents, read_documents
from peak_memory import measure_peak

from keras_deepseek.training import Trainer

NUM_STEPS = 2
LEARNING_RATE = 1e-4


def measure_pretraining(
    trains_by: str,
    rounds: int,
    *,
    num_layers: int,
    batch_size: int,
    sizes: dict[str, int],
    head: str = "all",
    **options: Any,
) -> dict[str, Any]:
    """Returns the memory and time of steps of masked-language pretraining.

    Args:
        trains_by: `"Trainer"` or `"HF Trainer"`.
        rounds: integer. The passes that are timed.
        num_layers: integer. The layers of the encoder.
        batch_size: integer. The documents of a batch.
        sizes: dict. Further fields of `Shape`.
        head: `"all"`, `"chunked"`, or `"masked"` for packed rows and the head on masked positions.
        **options: Those of `Trainer`; of them Hugging Face's knows `precision`.
    """
    shape = Shape(num_layers, **sizes)
    documents = read_documents(batch_size * NUM_STEPS)
    if trains_by == "HF Trainer":
        if missing := [package for package in ("transformers", "accelerate") if not _has(package)]:
            return {"left_out": f"{' and '.join(missing)} not installed"}
        peak = measure_peak(
            lambda: _hugging_face(shape, documents, batch_size, **options),
            rounds,
            counts_model=True,
        )
        return {**peak, "seconds": peak["seconds"] / NUM_STEPS}
    trainers, analyses = [], []
    fitted = _prepare(head, documents, batch_size)

    def make() -> Callable[[], Any]:
        has_masked_head, is_chunked = head == "masked", head == "chunked"
        model = build(shape, has_masked_head=has_masked_head, has_chunked_loss=is_chunked)
        optimizer = keras.optimizers.AdamW(LEARNING_RATE)
        trainers.append(Trainer(model, optimizer=optimizer, **options))
        return lambda: trainers[0].fit(**fitted, verbose=0)

    with _analysed(analyses):
        peak = measure_peak(make, rounds, counts_model=True)
    report = trainers[0].measure_memory(**fitted)
    return {
        **peak,
        "seconds": peak["seconds"] / NUM_STEPS,
        "kept": (report.weights + report.optimizer) / 2**20,
        "gradients": report.gradients / 2**20,
        "activations": report.activations / 2**20,
        "temporary": max(analyses) / 2**20 if analyses else None,
    }


def _prepare(head: str, documents: Documents, batch_size: int) -> dict[str, Any]:
    """Returns the data among the arguments of `fit`: of each batch the same documents."""
    if head == "masked":
        x, y = masked_text.pack(documents)
        return {"x": x, "y": y, "batch_size": -(-len(y) // NUM_STEPS)}
    x, y = masked_text.pad(documents)
    if head == "chunked":
        return {"x": {**x, "targets": y}, "batch_size": batch_size}
    return {"x": x, "y": y, "batch_size": batch_size}


@contextlib.contextmanager
def _analysed(sizes: list[int]) -> Iterator[None]:
    """Finds the bytes that XLA plans for what a compiled step on JAX computes in between."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        jitted = jax.jit(function, **options)
        compiled: dict[Any, Any] = {}

        def run(*arguments: Any) -> Any:
            shapes = tuple(leaf.shape for leaf in jax.tree_util.tree_leaves(arguments))
            if shapes not in compiled:
                compiled[shapes] = jitted.lower(*arguments).compile()
                sizes.append(compiled[shapes].memory_analysis().temp_size_in_bytes)
            return compiled[shapes](*arguments)

        return run

    with mock.patch("keras.src.backend.jax.trainer.jit", jit):
        yield


def _hugging_face(
    shape: Shape, documents: Documents, batch_size: int, precision: str | None = None
) -> Callable[[], Any]:
    import training_torch

    return training_torch.MAKERS["HF Trainer"](
        _Setting(shape, documents, batch_size, is_half=precision is not None)
    )


class _Setting:
    """What the makers of rivals are told."""

    def __init__(self, shape: Any, documents: Any, batch_size: int, *, is_half: bool) -> None:
        self.shape, self.documents, self.batch_size = shape, documents, batch_size
        self.is_half = is_half

    def note(self, name: str, loss: Any) -> None:
        """Takes note of a loss."""


def measure_accuracy(precision: str | None, seed: int) -> dict[str, float]:
    """Returns the share of 397 handwritten digits that a network knows that learned from 1,400.

    Args:
        precision: string, or `None`. That of `Trainer`.
        seed: integer. Of the weights and of the order of the data.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 8, 8, 1).astype("float32")
    layers = keras.layers

    def make_model() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(32, 3, padding="same", activation="relu"),
                layers.Conv2D(32, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(128, activation="relu"),
                layers.Dense(10),
            ]
        )

    trainer = Trainer(
        make_model,
        optimizer=keras.optimizers.AdamW(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        precision=precision,
        seed=seed,
    )
    trainer.fit(images[:1400], labels[:1400], batch_size=32, epochs=15, verbose=0)
    _, accuracy = trainer.evaluate(images[1400:], labels[1400:], verbose=0)
    return {"accuracy": float(accuracy)}


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def main() -> int:
    kind, setting = sys.argv[1], json.loads(sys.argv[2])
    keras.utils.set_random_seed(0)
    measure = {"pretraining": measure_pretraining, "accuracy": measure_accuracy}[kind]
    print(json.dumps(measure(**setting)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

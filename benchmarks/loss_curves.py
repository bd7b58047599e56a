"""Whether packing, grouping and the head on masked positions learn as padding does: loss curves.

A small encoder of BERT's kind is trained for about 2,000 steps on real paragraphs, from three
seeds: padded with a head on all positions, packed and grouped with the head on masked positions,
and on torch by Hugging Face's trainer too. The same documents with the same masks, as many to a
step, in other orders. Prints the loss of masked tokens in documents that none has seen, by epochs,
as mean and deviation of the seeds; the curves are equal where they differ by less than the seeds.

    KERAS_BACKEND=torch OMP_NUM_THREADS=1 python benchmarks/loss_curves.py [--json RESULT.json]
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from processes import make_parser
from result import Figure, report

sys.path.insert(0, str(Path(__file__).parent / "rivals"))
from bert import EPSILON, Shape, build
from masked_text import IGNORED, Buckets, Documents, pack, pad, read_documents, split
from training_torch import missing, train_hugging_face

from keras_deepseek.training import Trainer

SHAPE = Shape(num_layers=2, hidden_dim=64, num_heads=4, vocabulary_size=4_700, longest=48)
BATCH_SIZE, NUM_UNSEEN, LEARNING_RATE = 16, 256, 1e-3
PADDED, PACKED, GROUPED, HF = (
    "padded, full head",
    "packed, masked head",
    "grouped, masked head",
    "HF Trainer, grouped",
)
Losses = list[float]


def main() -> int:
    parser = make_parser(__doc__, has_quick=False, rounds=None)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each, default 3")
    parser.add_argument("--epochs", type=int, default=18, help="default 18: about 2,000 steps")
    arguments = parser.parse_args()
    documents = read_documents(2_048, longest=SHAPE.longest)
    training_documents, unseen = split(documents, NUM_UNSEEN)
    steps = arguments.epochs * -(-len(training_documents.token_ids) // BATCH_SIZE)
    ways: dict[str, Callable[[Documents, Documents, int, int], Losses]] = {
        PACKED: train_packed,
        GROUPED: train_grouped,
        PADDED: train_padded,
    }
    if keras.backend.backend() == "torch" and not missing():
        ways[HF] = train_by_hugging_face
    marks = sorted({1, *range(3, arguments.epochs + 1, 3), arguments.epochs})
    print(f"{keras.backend.backend()}, {steps} steps; loss of unseen documents after epoch")
    print(f"{'':24}" + "".join(f"{mark:>14}" for mark in marks))
    results = {}
    for name, train in ways.items():
        curves = np.array(
            [
                train(training_documents, unseen, arguments.epochs, seed)
                for seed in range(arguments.seeds)
            ]
        )
        results[name] = curves.tolist()
        cells = [
            f"{curves[:, mark - 1].mean():>7.3f} ±{curves[:, mark - 1].std():.3f}" for mark in marks
        ]
        print(f"{name:24}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    return report(arguments.json, make_figures(results), results)


def make_figures(results: dict[str, list[Losses]]) -> list[Figure]:
    """Returns the lowest loss of each way, from the means over the seeds, beside its peers."""
    lowest = {name: float(np.mean(curves, axis=0).min()) for name, curves in results.items()}
    return [
        Figure(
            f"lowest loss of unseen documents, {name}",
            lowest[name],
            "nats",
            keras.backend.backend(),
            peer,
            lowest[peer],
        )
        for name in (PACKED, GROUPED)
        for peer in (PADDED, HF)
        if peer in lowest
    ]


def train_padded(
    training_documents: Documents, unseen: Documents, epochs: int, seed: int
) -> Losses:
    data = pad(training_documents, SHAPE.longest)
    return _train(data, pad(unseen, SHAPE.longest), BATCH_SIZE, epochs, seed, has_masked_head=False)


def train_packed(
    training_documents: Documents, unseen: Documents, epochs: int, seed: int
) -> Losses:
    x, y = pack(training_documents, seed)
    # About as many steps an epoch as there are batches of documents.
    num_rows = max(1, round(len(y) * BATCH_SIZE / len(training_documents.token_ids)))
    return _train((x, y), pack(unseen), num_rows, epochs, seed)


def train_grouped(
    training_documents: Documents, unseen: Documents, epochs: int, seed: int
) -> Losses:
    batches = Buckets(training_documents, BATCH_SIZE, seed)
    return _train((batches, None), pack(unseen), None, epochs, seed)


def _train(
    data: tuple[Any, Any],
    unseen: tuple[Any, Any],
    batch_size: int | None,
    epochs: int,
    seed: int,
    *,
    has_masked_head: bool = True,
) -> Losses:
    keras.utils.set_random_seed(seed)
    model = build(SHAPE, has_masked_head=has_masked_head)
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=0.0, epsilon=EPSILON),
        fp16_enabled=keras.backend.backend() == "torch",
        gradient_clip=("global_norm", 1.0),
        seed=seed,
    )
    losses: Losses = []

    def note(*_: Any) -> None:
        losses.append(_evaluate(model, *unseen))

    watch = keras.callbacks.LambdaCallback(on_epoch_end=note)
    trainer.fit(*data, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[watch])
    return losses


def _evaluate(model: keras.Model, x: Any, y: Any) -> float:
    """Returns the mean loss of all masked tokens."""
    total, count = 0.0, 0
    for start in range(0, len(y), 32):
        batch = {name: array[start : start + 32] for name, array in x.items()}
        targets = y[start : start + 32]
        logits = keras.ops.convert_to_numpy(model.predict_on_batch(batch)).astype("float64")
        rows, chosen = logits[targets != IGNORED], targets[targets != IGNORED]
        rows -= rows.max(axis=-1, keepdims=True)
        total += np.sum(np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(len(rows)), chosen])
        count += len(chosen)
    return float(total / count)


def train_by_hugging_face(
    training_documents: Documents, unseen: Documents, epochs: int, seed: int
) -> Losses:
    return train_hugging_face(
        SHAPE,
        training_documents,
        unseen,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        learning_rate=LEARNING_RATE,
        seed=seed,
    )


if __name__ == "__main__":
    sys.exit(main())

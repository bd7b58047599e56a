"""Whether gradients that are compressed between processes learn as others: losses by epoch.

A small encoder of BERT's kind is trained on masked words of real paragraphs, by as many processes
as the launcher starts, with each compression from the same weights in the same order. Rank 0
prints the loss of masked tokens in documents that none has seen, by epochs:

    keras-deepseek launch --nproc 2 benchmarks/reduction_losses.py [--epochs 6] [--seeds 1]
        [--ways float32 bfloat16 float16 low_rank_4 low_rank_8 low_rank_16] [--json RESULT.json]
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import keras
from processes import make_parser
from result import Figure, report

sys.path.insert(0, str(Path(__file__).parent / "rivals"))
from bert import EPSILON, Shape, build
from masked_text import pack, read_documents, split

from keras_deepseek.training import LowRank, Trainer, join_cluster

SHAPE = Shape(num_layers=2, hidden_dim=64, num_heads=4, vocabulary_size=4_700, longest=48)
NUM_DOCUMENTS, NUM_UNSEEN, ROWS, LEARNING_RATE = 2_048, 256, 8, 1e-3

WHOLE = "float32"
WAYS: dict[str, Any] = {
    WHOLE: None,
    "bfloat16": "bfloat16",
    "float16": "float16",
    "low_rank_4": LowRank(4),
    "low_rank_8": LowRank(8),
    "low_rank_16": LowRank(16),
}


def main() -> int:
    parser = make_parser(__doc__, has_quick=False, rounds=None)
    parser.add_argument("--epochs", type=int, default=6, help="default 6")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each, default 1")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=WAYS, help="default all")
    arguments = parser.parse_args()
    rank = join_cluster().rank
    training_documents, unseen = split(
        read_documents(NUM_DOCUMENTS, longest=SHAPE.longest), NUM_UNSEEN
    )
    final: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            losses = train(
                pack(training_documents, seed), pack(unseen), arguments.epochs, seed, WAYS[way]
            )
            final.setdefault(way, []).append(losses[-1])
            if rank == 0:
                print(f"seed {seed} {way:11}", *(f"{loss:.4f}" for loss in losses), flush=True)
    if rank or WHOLE not in final:
        return 0
    means = {way: statistics.mean(losses) for way, losses in final.items()}
    figures = [
        Figure(
            f"unseen loss after {arguments.epochs} epochs, {way}",
            loss,
            "nats",
            keras.backend.backend(),
            WHOLE,
            means[WHOLE],
        )
        for way, loss in means.items()
        if way != WHOLE
    ]
    return report(arguments.json, figures, final)


def train(data: Any, unseen: Any, epochs: int, seed: int, compression: Any) -> list[float]:
    """Returns the loss of unseen documents after each epoch."""
    trainer = Trainer(
        lambda: build(SHAPE, has_masked_head=True),
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=0.0, epsilon=EPSILON),
        gradient_clip=("global_norm", 1.0),
        distributed_strategy="allreduce",
        gradient_compression=compression,
        seed=seed,
    )
    history = trainer.fit(
        *data, batch_size=ROWS, epochs=epochs, validation_data=unseen, verbose=0
    ).history
    return [float(loss) for loss in history["val_loss"]]


if __name__ == "__main__":
    sys.exit(main())

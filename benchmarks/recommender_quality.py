"""What a sequential recommender reaches on histories whose law is known: hit rate and NDCG at 10.

The histories are drawn by `SyntheticInteractions`: the next item depends on the last two. So the
best that any recommender can reach is known, and stands beside what the model reaches and what
ranking by popularity does, over all items, on each user's last item. Each seed draws other
histories, other weights and other negatives. A process on one thread, for each backend that is
installed:

    python benchmarks/recommender_quality.py [--backends torch jax] [--seeds 3] [--json RESULT.json]

With a folder of MovieLens files, on the backend of `KERAS_BACKEND`, the same on real histories:

    KERAS_BACKEND=jax python benchmarks/recommender_quality.py --movielens FOLDER [--epochs 100]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from processes import make_parser
from result import Figure, report

BACKENDS = ("tensorflow", "jax", "torch")
BATCH_SIZE, LEARNING_RATE, NUM_NEGATIVES = 64, 3e-3, 128
K = 10
ROWS = ("best possible", "recommender", "popularity")


def main() -> int:
    parser = make_parser(__doc__, has_quick=False, rounds=None)
    parser.add_argument("--backends", nargs="+", default=[*BACKENDS], choices=BACKENDS)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each, default 3")
    parser.add_argument("--epochs", type=int, default=30, help="default 30")
    parser.add_argument("--movielens", type=Path, help="a folder of MovieLens files")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(train_synthetic(arguments.one, arguments.epochs)))
        return 0
    if arguments.movielens is not None:
        results = {"MovieLens": [train_movielens(arguments.movielens, arguments.epochs)]}
    else:
        results = {}
        for backend in arguments.backends:
            runs = [run(backend, seed, arguments.epochs) for seed in range(arguments.seeds)]
            results[backend] = [scores for scores in runs if scores]
    print_table(results)
    return report(arguments.json, make_figures(results), results)


def run(backend: str, seed: int, epochs: int) -> dict[str, Any] | None:
    """Returns what one training in a process of its own has reached."""
    settings = {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    settings |= {
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    command = [sys.executable, __file__, "--one", str(seed), "--epochs", str(epochs)]
    ended = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        print(f"{backend}, seed {seed}: {ended.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    print(f"{backend}, seed {seed}: {result}", flush=True)
    return result


def train_synthetic(seed: int, epochs: int) -> dict[str, Any]:
    """Returns hit rates and NDCGs on synthetic histories."""
    from keras_deepseek.models import SyntheticInteractions

    interactions = SyntheticInteractions(seed=seed)
    split = interactions.draw().leave_last_out()
    histories = [history[:-1] for history in split.held_out]
    scores = train(split, seed, epochs, max_length=30)
    ranked = -np.sort(-interactions.next_probabilities(histories), axis=1)[:, :K]
    discounts = 1 / np.log2(np.arange(K) + 2)
    best = interactions.best_hit_rate(histories, K), float((ranked @ discounts).mean())
    return {**scores, "best possible": best}


def train_movielens(folder: Path, epochs: int) -> dict[str, Any]:
    """Returns hit rates and NDCGs on real histories; what the best is, nobody knows."""
    from keras_deepseek.models import read_movielens

    return train(read_movielens(folder).leave_last_out(), 0, epochs, max_length=200)


def train(split: Any, seed: int, epochs: int, max_length: int) -> dict[str, Any]:
    """Returns what the model reaches, what popularity does, and the seconds of training."""
    import keras

    from keras_deepseek.models import SequentialRecommender, SequentialRecommenderConfig

    keras.utils.set_random_seed(seed)
    recommender = SequentialRecommender(
        SequentialRecommenderConfig.from_preset(
            "small", num_items=split.num_items, max_length=max_length
        )
    )
    training_model = recommender.make_training_model(
        NUM_NEGATIVES, item_weights=(split.item_counts() + 1.0) ** 0.75, seed=seed
    )
    training_model.compile(keras.optimizers.Adam(LEARNING_RATE))
    start = time.perf_counter()
    training_model.fit(
        split.train_inputs(max_length), batch_size=BATCH_SIZE, epochs=epochs, verbose=0
    )
    seconds = time.perf_counter() - start
    inputs, targets = split.test_data(max_length)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    recommender.compile(loss=loss, metrics=make_metrics())
    reached = recommender.evaluate(inputs, targets, verbose=0, return_dict=True)
    popular = make_metrics()
    counts = np.concatenate([[-1.0], split.item_counts()]).astype("float32")
    for metric in popular:
        metric.update_state(targets, np.broadcast_to(counts, (len(targets), len(counts))))
    return {
        "recommender": [reached[metric.name] for metric in popular],
        "popularity": [float(metric.result()) for metric in popular],
        "seconds": round(seconds, 1),
    }


def make_metrics() -> list[Any]:
    from keras_deepseek.models import HitRate, NormalizedDiscountedCumulativeGain

    return [HitRate(K), NormalizedDiscountedCumulativeGain(K)]


def make_figures(results: dict[str, list[dict[str, Any]]]) -> list[Figure]:
    """Returns the means of the seeds, beside popularity and the best possible."""
    figures = []
    for data, runs in results.items():
        for index, name in enumerate((f"hit rate at {K}", f"NDCG at {K}")):
            means = {
                row: float(np.mean([scores[row][index] for scores in runs]))
                for row in ROWS
                if runs and all(row in scores for scores in runs)
            }
            figures += [
                Figure(name, means[ROWS[1]], "", data, peer, means[peer], is_less_better=False)
                for peer in (ROWS[0], ROWS[2])
                if peer in means
            ]
    return figures


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the means of the seeds, with the least and the most."""
    print(f"{'':12}{'':16}{f'hit rate at {K}':>24}{f'NDCG at {K}':>24}{'seconds':>10}")
    for backend, runs in results.items():
        for row in ROWS:
            columns = [
                np.array(column) for column in zip(*(x[row] for x in runs if row in x), strict=True)
            ]
            if not columns:
                continue
            cells = [f"{c.mean():.3f} ({c.min():.3f} to {c.max():.3f})" for c in columns]
            seconds = np.mean([scores["seconds"] for scores in runs]) if row == ROWS[1] else None
            last = "" if seconds is None else f"{seconds:.0f}"
            print(
                f"{backend:12}{row:16}" + "".join(f"{cell:>24}" for cell in cells) + f"{last:>10}"
            )


if __name__ == "__main__":
    sys.exit(main())

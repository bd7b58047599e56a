"""What a training of BERT's shape holds in memory at the most, and what each remedy costs in time.

Four layers, 32 documents of real text a batch, AdamW. The rows add one remedy after the other: half
precision; the loss in chunks, for without it the logits dominate, which Keras's loss takes in
float32; packed rows with the head on masked positions; blocks that are computed anew. On torch
Hugging Face's trainer is beside them.

- "peak" is what the process held at the most in its steps, less what it held before there was a
  model; it is exact, for the system counts it (on Linux alone), and malloc is told to hand large
  blocks back at once.
- "in between" is the peak less weights, moments and gradients: activations and temporary memory.
  On JAX it is what XLA plans for one step.
- "kept" is what `Trainer.measure_memory` counts as activations.
- The time is the median of process time, "times" its ratio to the first row's. Each row is a
  process of its own, in one thread.

Then a real task, handwritten digits, in float32 and in half precision, with three seeds.

    python benchmarks/memory.py [--rounds 3] [--json RESULT.json] [--quick]
"""

import json
import statistics
import sys
from typing import Any

from processes import RETURN_LARGE_BLOCKS, find_backends, make_parser, run_script
from result import Figure, report

HALF = {"precision": "bfloat16"}
FLOAT32, FLOAT32_CHUNKED = "float32", "float32, chunked loss"
BFLOAT16, CHUNKED, CHUNKED_REMAT = "bfloat16", "bfloat16, chunked", "bfloat16, chunked, remat"
MASKED, REMAT = "bfloat16, packed, masked", "bfloat16, packed, masked, remat"
HF_HALF = "HF Trainer, bfloat16"
BLOCKS = {"remat": ["block_*"]}
ROWS: dict[str, dict[str, Any]] = {
    FLOAT32: {},
    FLOAT32_CHUNKED: {"head": "chunked"},
    HF_HALF: {"trains_by": "HF Trainer", **HALF},
    BFLOAT16: HALF,
    CHUNKED: {**HALF, "head": "chunked"},
    CHUNKED_REMAT: {**HALF, "head": "chunked", **BLOCKS},
    MASKED: {**HALF, "head": "masked"},
    REMAT: {**HALF, "head": "masked", **BLOCKS},
}
FULL = {"num_layers": 4, "batch_size": 32, "sizes": {}}
QUICK = {
    "num_layers": 1,
    "batch_size": 8,
    "sizes": {"hidden_dim": 24, "vocabulary_size": 5_000},
}
SEEDS = range(3)
LEAST, MOST_ERRORS = 1 / 0.7, 0.005

Numbers = dict[str, Any]


def main() -> int:
    arguments = make_parser(__doc__).parse_args()
    heads = ("peak MB", "in between", "kept", "s a step", "times")
    print(f"{'':44}" + "".join(f"{head:>11}" for head in heads))
    results, figures = [], []
    for backend in find_backends():
        rows: dict[str, Numbers] = {}
        for name, row in ROWS.items():
            if backend != "torch" and "trains_by" in row:
                continue
            numbers = run_row(backend, name, row, arguments.rounds, is_quick=arguments.quick)
            if numbers:
                rows[name] = numbers
                show(backend, name, numbers, rows[FLOAT32]["seconds"])
        accuracies = compare_accuracies(backend)
        results.append({"backend": backend, "rows": rows, "accuracies": accuracies})
        if not arguments.quick:
            figures += judge(backend, rows, accuracies)
    return report(arguments.json, figures, results)


def run_row(backend: str, name: str, row: Numbers, rounds: int, *, is_quick: bool) -> Numbers:
    """Returns the numbers of a row; nothing where it was left out."""
    setting = {"trains_by": "Trainer", "rounds": rounds, **(QUICK if is_quick else FULL), **row}
    numbers = run_script(
        "memory.py", backend, "pretraining", json.dumps(setting), **RETURN_LARGE_BLOCKS
    )
    if not numbers or "left_out" in numbers:
        print(f"{backend:11}{name:33}left out: {(numbers or {}).get('left_out', 'it failed')}")
        return {}
    if "kept" in numbers:
        there = numbers["kept"] + numbers["gradients"]
        planned = numbers["temporary"]
        numbers["between"] = numbers["megabytes"] - there if planned is None else planned
    return dict(numbers)


def show(backend: str, name: str, numbers: Numbers, seconds: float) -> None:
    """Prints a row, and its time by that of the float32 row."""
    figures = [numbers.get(key) for key in ("megabytes", "between", "activations", "seconds")]
    cells = [
        "" if figure is None else f"{figure:,.{digits}f}"
        for figure, digits in zip(figures, (0, 0, 0, 2), strict=True)
    ]
    cells.append(f"{numbers['seconds'] / seconds:.2f}")
    print(f"{backend:11}{name:33}" + "".join(f"{cell:>11}" for cell in cells), flush=True)


def compare_accuracies(backend: str) -> dict[str, list[float]]:
    """Returns the accuracies on digits by precision, and prints them."""
    accuracies = {}
    for name, precision in ((FLOAT32, None), (BFLOAT16, HALF["precision"])):
        settings = [json.dumps({"precision": precision, "seed": seed}) for seed in SEEDS]
        rows = [run_script("memory.py", backend, "accuracy", setting) for setting in settings]
        accuracies[name] = [row["accuracy"] for row in rows if row]
        print(
            f"{backend:11}digits, {name:25}"
            + "".join(f"{accuracy:11.3f}" for accuracy in accuracies[name])
        )
    return accuracies


def judge(
    backend: str, rows: dict[str, Numbers], accuracies: dict[str, list[float]]
) -> list[Figure]:
    """Returns the figures that are claimed of a backend."""
    figures = []
    if FLOAT32_CHUNKED in rows and CHUNKED in rows:  # Without, the logits dominate.
        half, full = (rows[name]["between"] for name in (CHUNKED, FLOAT32_CHUNKED))
        name = "activations and temporary memory in bfloat16, chunked loss"
        figures.append(Figure(name, half, "MB", backend, "float32", full, LEAST))
    if HF_HALF in rows and MASKED in rows:
        ours, theirs = (rows[name]["megabytes"] for name in (MASKED, HF_HALF))
        name = "peak of pretraining, bfloat16, packed, masked"
        figures.append(Figure(name, ours, "MB", backend, "HF Trainer", theirs, LEAST))
    means = {name: statistics.mean(values) for name, values in accuracies.items() if values}
    if len(means) == len(accuracies):
        worse = means[FLOAT32] - means[BFLOAT16]
        name = "accuracy on digits lost by bfloat16"
        figures.append(Figure(name, worse, "", backend, target=MOST_ERRORS))
    return figures


if __name__ == "__main__":
    sys.exit(main())

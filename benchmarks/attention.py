"""Claims of `BlockSparseAttention` over long sequences, on the CPU, in one thread.

At 8,192 positions it is at least 12 times faster than dense attention by einsum and 3 times faster
than `keras.ops.dot_product_attention` (on torch: its flash kernel), and twice the length costs at
most 2.3 times as much, forward and with backward.

Each backend runs in its usual compiled form: TensorFlow in a graph, JAX under jit, torch eagerly as
Keras runs it. The claims are of attention alone, without projections: 1 sequence, 4 heads of 64,
causal; `sparse` has a window of one block of 64 and one global block. Below stand whole layers with
their projections, from 256 numbers to 256: Keras's dense one, and those of this package.

The rivals take turns, and the numbers are medians of process time. What would hold a matrix of
scores above `--memory` is left out, and counts as met. Prints a table and writes the numbers as
JSON, for the backend that `KERAS_BACKEND` names or else for all that are installed, each in
processes of its own:

    python benchmarks/attention.py [--longest 16384] [--rounds 5] [--json RESULT.json] [--quick]
"""

import sys
from typing import Any

from processes import find_backends, make_parser, measure
from result import Figure, report

DENSE, KERAS, OURS = "dense einsum", "dot_product_attention", "sparse"
AT, QUICK_LENGTHS = 8192, (256, 512)
PEERS = {DENSE: 12, KERAS: 3}
"""How many times faster than each peer."""
MOST_BY_DOUBLING = 2.3
Results = dict[int, dict[str, Any]]


def measure_backend(backend: str, lengths: tuple[int, ...], rounds: int, memory: float) -> Results:
    """Returns what was measured, by length, and prints it."""
    results = {}
    for length in lengths:
        setting = {"length": length, "most_score_bytes": int(memory * 2**30)}
        result = measure(backend, "attention", rounds, **setting)
        if result is None:
            continue
        results[length] = result
        forward, backward = result["milliseconds"].values()
        for name, reason in result["facts"]["skipped"].items():
            print(f"{backend:11}{length:>6}  {name:28}{f'left out: {reason}':>36}")
        for name, milliseconds in forward.items():
            ratios = "".join(f"{x[name] / x[OURS]:>11.1f}" for x in (forward, backward))
            print(
                f"{backend:11}{length:>6}  {name:28}{milliseconds:>12.1f}{backward[name]:>15.1f}"
                f"{ratios}",
                flush=True,
            )
    return results


def judge(backend: str, results: Results, at: int) -> list[Figure]:
    """Returns the claims' figures at a length."""
    figures = []
    for direction, here in results[at]["milliseconds"].items():
        name, half = f"{at:,} positions, {direction}", results[at // 2]["milliseconds"][direction]
        figures += [
            Figure(name, here[OURS], "ms", backend, peer, here[peer], least)
            for peer, least in PEERS.items()
            if peer in here
        ]
        doubling = here[OURS] / half[OURS]
        figures.append(
            Figure(f"{name}, by half of them", doubling, "times", backend, target=MOST_BY_DOUBLING)
        )
    return figures


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--longest", type=int, default=16384, help="a power of two, 2048 or more")
    parser.add_argument(
        "--memory", type=float, default=2.0, help="GiB of the largest matrix of scores, default 2"
    )
    arguments = parser.parse_args()
    lengths, length = [], 1024
    while length <= arguments.longest:
        lengths.append(length)
        length *= 2
    if arguments.quick:
        lengths = list(QUICK_LENGTHS)
    print(f"{'ms':11}{'length':>6}  {'':28}{'forward':>12}{'with backward':>15}", end="")
    print(f"{'by sparse':>22}")
    by_backend: dict[str, Results] = {}
    figures: list[Figure] = []
    for backend in find_backends():
        results = measure_backend(backend, tuple(lengths), arguments.rounds, arguments.memory)
        by_backend[backend] = results
        at = min(AT, lengths[-1])
        if arguments.quick or not {at, at // 2} <= set(results):
            continue  # At small sizes nothing is claimed.
        figures += judge(backend, results, at)
    return report(arguments.json, figures, by_backend)


if __name__ == "__main__":
    sys.exit(main())

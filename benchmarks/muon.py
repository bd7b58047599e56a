"""Muon that sees the matrices of a mixture of experts, beside AdamW and Keras's Muon.

Two claims. A stack of 64 experts is updated in at most a third of the time of 64 single matrices.
And the small DeepSeek-V3 of `language_model_quality.py` reaches fewer bits a character in the same
seconds, on text that it has not seen.

The optimizers' steps are timed in turns, in seconds of the processor of one thread. Each then
trains for as many steps as `--seconds` hold, by a schedule of that length. The learning rate of
each is the best of `--rates` on a seed of its own. "joint heads" is ours without `split_heads`.

    KERAS_BACKEND=jax python benchmarks/muon.py [--seconds 120] [--json RESULT.json]
"""

import json
import statistics
import sys

from processes import find_backends, make_parser, run_script
from result import Figure, report

OPTIMIZERS = ("ours", "joint heads", "Keras's Muon", "AdamW")
SIZES = ((64, 16, 32), (64, 48, 96), (64, 128, 256))
SEED_OF_RATES = 100


def run(backend, job, *arguments):
    return run_script("muon_training.py", backend, job, *map(json.dumps, arguments))


def time_updates(backend, rounds):
    """Returns the figures of stacks beside single matrices, and the times behind them."""
    figures, rows = [], []
    for number, height, width in SIZES:
        times = run(backend, "updates", number, height, width, rounds)
        rows.append({"backend": backend, "matrices": [number, height, width], **times})
        print(json.dumps(rows[-1]), flush=True)
        stacked = 1000 * times.pop("ours, stacked")
        name = f"update of {number} experts of {height} x {width}"
        figures += [
            Figure(name, stacked, "ms", backend, kind, 1000 * seconds, 3.0)
            for kind, seconds in times.items()
        ]
    return figures, rows


def compare_quality(backend, arguments):
    """Returns the figures of bits a character, and the runs behind them."""
    times = run(backend, "steps", list(OPTIMIZERS), arguments.rounds)
    print(json.dumps({"backend": backend, "step_seconds": times}), flush=True)
    bits, runs = {}, []
    for name in OPTIMIZERS:
        steps = round(arguments.seconds / times[name])
        trials = [run(backend, "train", name, SEED_OF_RATES, r, steps) for r in arguments.rates]
        rate = min(trials, key=lambda trial: trial["bits"])["rate"]
        final = [run(backend, "train", name, seed, rate, steps) for seed in arguments.seeds]
        bits[name] = statistics.mean(trained["bits"] for trained in final)
        for trained in (*trials, *final):
            runs.append({"backend": backend, **trained})
            print(json.dumps(runs[-1]), flush=True)
    ours = bits.pop("ours")
    name = f"bits a character after {arguments.seconds:g} s"
    figures = [
        Figure(name, ours, "bits", backend, peer, reached, None if peer == "joint heads" else 1.0)
        for peer, reached in bits.items()
    ]
    return figures, runs


def main():
    parser = make_parser(__doc__, has_quick=False)
    parser.add_argument("--seconds", type=float, default=120.0, help="of a training, default 120")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3, 0.016, 0.032])
    arguments = parser.parse_args()
    figures, updates, runs = [], [], []
    for backend in find_backends():
        of_updates, update_rows = time_updates(backend, arguments.rounds)
        of_quality, run_rows = compare_quality(backend, arguments)
        figures += of_updates + of_quality
        updates += update_rows
        runs += run_rows
    return report(arguments.json, figures, {"updates": updates, "runs": runs})


if __name__ == "__main__":
    sys.exit(main())

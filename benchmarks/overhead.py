"""What `Trainer.fit` costs beside the step itself.

The same steps of a small network (two hidden layers, batches of 32, Adam) are made by the bare
compiled step in a plain loop, by Keras's `model.fit` and by `Trainer.fit`, and on torch by
Lightning where it is installed, around the same Keras model. `Trainer.fit` is no slower than
`model.fit`, and within 5 % of the bare step where a step takes 20 ms or more; on torch it adds less
than Lightning.

Each backend runs in its usual compiled form, in one thread. The rivals take turns, and the numbers
are medians of process time, of runs of many steps; the ratios are medians too, of those of a round,
since what else runs on the machine slows down all of a round alike. Prints a table and writes the
numbers as JSON:

    python benchmarks/overhead.py [--rounds 5] [--json RESULT.json] [--quick]
"""

import statistics
import sys

from processes import find_backends, make_parser, measure
from result import Figure, report

SIZES = {"small": {"width": 256, "num_steps": 300}, "large": {"width": 2560, "num_steps": 60}}
BARE, KERAS, OURS, LIGHTNING = "bare step", "model.fit", "Trainer.fit", "Lightning"
LONG_STEP = 20  # Milliseconds.


def main() -> int:
    arguments = make_parser(__doc__).parse_args()
    columns = "".join(f"{name:>10}" for name in ("step", "added", "by bare", "by fit"))
    print(f"{'ms a step':11}{'size':8}{'':14}{columns}")
    results, figures = {}, []
    for backend in find_backends():
        for size, usual in SIZES.items():
            setting = {"width": 16, "num_steps": 8} if arguments.quick else usual
            result = measure(
                backend, "overhead", arguments.rounds, **setting, directions=["forward"]
            )
            if result is None:
                continue
            samples = {
                name: [total / setting["num_steps"] for total in totals]
                for name, totals in result["samples"]["forward"].items()
            }
            results[f"{backend} {size}"] = samples
            for name, reason in result["facts"]["skipped"].items():
                print(f"{backend:11}{size:8}{name:14}left out: {reason}")
            for name, steps in samples.items():
                step = statistics.median(steps)
                added = step - statistics.median(samples[BARE])
                ratios = [compare(steps, samples[other]) for other in (BARE, KERAS)]
                numbers = f"{step:>10.3f}{added:>10.3f}{ratios[0]:>10.2f}{ratios[1]:>10.2f}"
                print(f"{backend:11}{size:8}{name:14}{numbers}", flush=True)
            if not arguments.quick:
                figures += judge(backend, size, samples)
    return report(arguments.json, figures, results)


def compare(steps: list[float], other_steps: list[float]) -> float:
    """Returns by how many times steps take longer than others, which took turns with them."""
    return statistics.median(
        step / other_step for step, other_step in zip(steps, other_steps, strict=True)
    )


def judge(backend: str, size: str, samples: dict[str, list[float]]) -> list[Figure]:
    """Returns the figures at a size. The peer's is by the median ratio of the rounds."""
    ours = statistics.median(samples[OURS])
    is_long = statistics.median(samples[BARE]) >= LONG_STEP
    targets = {KERAS: 0.98, BARE: 0.95 if is_long else None, LIGHTNING: 1.0}
    return [
        Figure(
            f"{size} step",
            ours,
            "ms",
            backend,
            peer,
            ours / compare(samples[OURS], samples[peer]),
            least,
        )
        for peer, least in targets.items()
        if peer in samples
    ]


if __name__ == "__main__":
    sys.exit(main())

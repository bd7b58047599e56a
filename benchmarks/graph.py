"""Claims of `graph.optimize`, on the CPU, in one thread: models as they are over optimized ones.

Each model runs in every execution mode of its backend: PyTorch eagerly and under `torch.compile`,
TensorFlow in a graph and under XLA, JAX under jit, and in ONNX Runtime, exported from PyTorch.
A number is the time of the original over that of the optimized model, in one mode. `compiler` is
the time of the original in the backend's plain mode over that of the original in this mode: what
the compiler reaches alone.

A "step" is `train_on_batch` with SGD. The passes are chosen by cost (`measure=False`), so that runs
can be compared; by default `optimize` times each pass and drops those that do not pay.

The rivals take turns, and the numbers are medians of process time. Prints a table and writes the
numbers as JSON, for the backend that `KERAS_BACKEND` names or else for all that are installed, each
case in a process of its own:

    python benchmarks/graph.py [--rounds 9] [--json RESULT.json] [--quick] [--case TEXT]
        [--modes MODE ...]
"""

import sys
from typing import Any

from processes import find_backends, make_parser, measure
from result import Figure, report

MODES = {
    "torch": ("eager", "compiled", "ONNX Runtime"),
    "tensorflow": ("graph", "XLA"),
    "jax": ("jit",),
}
ALL = tuple(mode for modes in MODES.values() for mode in modes)
NO_SLOWER = 0.97  # Of equal programs, medians differ by so much.
TARGETS: dict[str, tuple[float, tuple[str, ...]]] = {
    "first-token classifier": (1.15, ALL),
    "first-token classifier, step": (1.1, ALL),
    "BertTextClassifier": (1.15, ALL),
    "SequentialRecommender": (1.15, ALL),
    "Llama, last token": (1.15, ALL),
    "LoRA, width 768, step": (1.2, ALL),
    "naive latent attention": (10, ALL),
    "linear attention": (8, ALL),
    "x(AB)": (2.5, ALL),
    "small encoder": (2, ("eager",)),
    "duplicated branches": (1.3, ("eager",)),
    "Conv+BN": (1.25, ("eager",)),
    "attention with dropout": (1.3, ("eager",)),
    "clean BERT block": (NO_SLOWER, ALL),
}
"""The least ratio of each case, and the modes in which it is claimed."""
NOT_EXPORTED = ("Llama, last token",)
"""KerasHub's Llama can't be made again from its config, which an export from PyTorch needs."""


def measure_case(
    backend: str, case: str, modes: list[str], arguments: Any
) -> list[dict[str, Any]] | None:
    """Returns the row of each mode, or `None` if the process failed."""
    is_step = case.endswith("step")
    is_exported = not is_step and case not in NOT_EXPORTED
    modes = [mode for mode in modes if mode != "ONNX Runtime" or is_exported]
    result = measure(
        backend,
        "graph",
        arguments.rounds,
        case=case,
        modes=modes,
        quick=arguments.quick,
        directions=["forward"],
    )
    if result is None:
        return None
    milliseconds = result["milliseconds"]["forward"]
    least, claimed = TARGETS[case]
    rows = []
    for mode in modes:
        original, optimized = (milliseconds[f"{mode} {kind}"] for kind in ("original", "optimized"))
        row = {"backend": backend, "case": case, "mode": mode, "original": original}
        row |= {"optimized": optimized, "ratio": original / optimized, "facts": result["facts"]}
        row["compiler"] = milliseconds[f"{modes[0]} original"] / original
        row["target"] = least if mode in claimed and not arguments.quick else None
        rows.append(row)
    return rows


def main() -> int:
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument("--case", default="", help="only the cases whose name contains this text")
    parser.add_argument("--modes", nargs="*", default=ALL, choices=ALL, help="only these modes")
    arguments = parser.parse_args()
    print(f"{'':32}{'mode':14}{'original':>10}{'optimized':>11}{'ratio':>8}{'compiler':>10}")
    rows: list[dict[str, Any]] = []
    for backend in find_backends():
        modes = [mode for mode in MODES[backend] if mode in arguments.modes]
        for case in TARGETS:
            if not modes or arguments.case not in case:
                continue
            for row in measure_case(backend, case, modes, arguments) or ():
                rows.append(row)
                print(
                    f"{case:32}{row['mode']:14}{row['original']:>10.2f}{row['optimized']:>11.2f}"
                    f"{row['ratio']:>8.2f}{row['compiler']:>10.2f}",
                    flush=True,
                )
    figures = [
        Figure(
            f"{row['case']}, {row['mode']}",
            row["optimized"],
            "ms",
            row["backend"],
            "not optimized",
            row["original"],
            row["target"],
        )
        for row in rows
    ]
    return report(arguments.json, figures, rows)


if __name__ == "__main__":
    sys.exit(main())

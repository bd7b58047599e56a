"""What `ChunkedCrossEntropy` saves in memory and costs in time, beside a `Dense` layer and a loss.

One step over 4,096 tokens of 256 numbers each and 32,768 classes, whose logits alone take 512 MB.
"gradient" is the loss and its gradients by the hidden states and by the kernel, "fit" a step of
SGD by Keras's own training. Each backend runs in its usual compiled forms: torch eagerly, JAX under
jit, TensorFlow in a graph and under XLA.

Each row is a process of its own, in one thread. The memory is what the process held at the most
during a step, less what it held before the first; it is exact, for the system counts it (on Linux
alone), and malloc is told to hand large blocks back at once. The time is the median of the steps,
in seconds of the processor. The ratios are those to "plain". Computing the logits anew in the
backward pass explains four thirds of the time: four products of matrices, where there were three.

    python benchmarks/memory_of_cross_entropy.py [--rounds 3] [--json RESULT.json]
"""

import sys
from typing import Any

from processes import RETURN_LARGE_BLOCKS, find_backends, make_parser, run_script
from result import Figure, report

FORMS = {"torch": ["eager"], "jax": ["jit"], "tensorflow": ["graph", "XLA"]}
KINDS, HEADS = ("gradient", "fit"), ("plain", "chunked")


def main() -> int:
    arguments = make_parser(__doc__, has_quick=False).parse_args()
    print(f"{'':11}{'':9}{'':6}  {'':8}{'MB':>7}{'ratio':>7}{'s':>8}{'ratio':>7}")
    results = []
    for backend in find_backends():
        for form in FORMS[backend]:
            for kind in KINDS:
                results += compare(backend, kind, form, arguments.rounds)
    figures = [
        Figure(
            f"{chunked['kind']}, {chunked['form']}, {key}",
            chunked[key],
            unit,
            chunked["backend"],
            "Dense and loss",
            plain[key],
        )
        for plain, chunked in zip(results[::2], results[1::2], strict=True)
        for key, unit in (("megabytes", "MB"), ("seconds", "s"))
    ]
    return report(arguments.json, figures, results)


def compare(backend: str, kind: str, form: str, rounds: int) -> list[dict[str, Any]]:
    """Returns the rows of both heads, and prints them; none if one of them fails."""
    rows: list[dict[str, Any]] = []
    plain: dict[str, float] = {}
    for head in HEADS:
        row: dict[str, float] | None = run_script(
            "cross_entropy_memory.py",
            backend,
            *(kind, head, form, str(rounds)),
            **RETURN_LARGE_BLOCKS,
        )
        if row is None:
            return []
        plain = plain or row
        ratios = {name: row[name] / plain[name] for name in row}
        print(
            f"{backend:11}{kind:9}{form:6}  {head:8}{row['megabytes']:7.0f}"
            f"{ratios['megabytes']:7.2f}{row['seconds']:8.2f}{ratios['seconds']:7.2f}",
            flush=True,
        )
        rows.append({"backend": backend, "kind": kind, "form": form, "head": head, **row})
    return rows


if __name__ == "__main__":
    sys.exit(main())

"""What `shard_optimizer=True` saves and costs: AdamW in 4 processes over links of 1 Gbit/s.

Each process is in a network namespace of its own, as in `scaling.py`, and trains the model of that
script on the same rows. The rivals take turns in the same processes:

- `Trainer` with whole state on each process, which sums gradients by an all-reduce.
- torch: the same model under DistributedDataParallel with PyTorch's `ZeroRedundancyOptimizer`; and
  PyTorch's own encoder layers of the same sizes under `fully_shard` (FSDP2), which divides weights
  too.

Bytes of the optimizer's state on rank 0, bytes that it sends in a step, seconds of a step and
process time of rank 0, medians. The peak of a step is measured apart, in processes whose malloc
hands memory back at once, above what they held before their model was made. Linux and root alone:

    KERAS_BACKEND=torch python benchmarks/sharded_optimizer.py [--workers 4] [--megabits 1000]
        [--precision bfloat16] [--rounds 3] [--json RESULT.json] [--quick]

With `--precision bfloat16`, layers compute in bfloat16, and weights, gradients and state are in
float32. PyTorch's own ways are left out.
"""

import os
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

from processes import RETURN_LARGE_BLOCKS, find_backends, make_parser
from result import Figure, report
from scaling import end, run_workers
from shaped_links import shaped_links

OURS, ALL_REDUCE, ZERO, FSDP = "sharded", "all-reduce", "DDP, ZeRO", "FSDP2"
WAYS = {
    "torch": [OURS, ALL_REDUCE, ZERO, FSDP],
    "tensorflow": [OURS, ALL_REDUCE],
    "jax": [OURS, ALL_REDUCE],
}
SIZES = {"num_layers": 3, "hidden_dim": 256, "rows_each": 2, "warm_up": 2, "num_steps": 6}
QUICK = {"num_layers": 1, "hidden_dim": 32, "rows_each": 2, "warm_up": 1, "num_steps": 2}
_WORKER = Path(__file__).parent / "rivals" / "sharded_optimizer.py"
_ENOUGH = 1 / 1.03
"""The least advantage over a peer that is to be as good within 3 %."""


def main() -> int:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--workers", type=int, default=4, help="default 4")
    parser.add_argument("--megabits", type=float, default=1_000.0, help="default 1000")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    results, figures = [], []
    for backend in find_backends():
        ways = WAYS[backend] if arguments.precision == "float32" else [OURS, ALL_REDUCE]
        setting = {"ways": ways, **(QUICK if arguments.quick else SIZES), "parts": 1}
        setting |= {"num_workers": arguments.workers, "rounds": arguments.rounds}
        setting["precision"] = arguments.precision
        result = measure(backend, setting, arguments.megabits)
        if result is None:
            return 1
        results.append(result)
        show(result)
        if not arguments.quick:
            figures += judge(result)
    return report(arguments.json, figures, results) if results else 1


def measure(backend: str, setting: dict[str, Any], megabits: float) -> dict[str, Any] | None:
    """Returns the medians of each way, or `None` where a worker fails."""
    with shaped_links(setting["num_workers"], megabits) as hosts:
        answer = run_workers(backend, setting, hosts, _WORKER)
    if answer is None:
        return None
    medians = {
        name: {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        for name, rounds in answer["results"].items()
    }
    load = os.getloadavg()[0]
    for name, figures in medians.items():
        with shaped_links(setting["num_workers"], None) as hosts:
            alone = {**setting, "ways": [name], "rounds": 1}
            peak = run_workers(backend, alone, hosts, _WORKER, **RETURN_LARGE_BLOCKS)
        if peak is None:
            return None
        figures["peak_megabytes"] = peak["results"][name][0]["peak_megabytes"]
    facts = {"backend": backend, "megabits": megabits, "load_at_the_end": round(load, 1)}
    return {**setting, **facts, "num_weights": answer["num_weights"], "medians": medians}


def show(result: dict[str, Any]) -> None:
    """Prints what was measured."""
    print(
        f"{result['backend']}, {result['num_workers']} workers, {result['megabits']:g} Mbit/s, "
        f"{result['num_weights'] / 1e6:.1f} M weights, {result['precision']} "
        f"(load {result['load_at_the_end']})"
    )
    heads = ("state MB", "sent MB", "peak MB", "s a step", "CPU s", "loss")
    print(f"    {'':12}", *(f"{head:>10}" for head in heads), sep="")
    for name, figures in result["medians"].items():
        keys = ("peak_megabytes", "seconds", "cpu_seconds", "loss")
        numbers = [figures["state_bytes"] * 1e-6, figures["bytes"] * 1e-6]
        cells = [f"{number:>10.3f}" for number in [*numbers, *map(figures.get, keys)]]
        print(f"    {name:12}", *cells, sep="", flush=True)


def judge(result: dict[str, Any]) -> list[Figure]:
    """Returns the figures of the sharded state, beside each rival's."""
    backend, medians, workers = result["backend"], result["medians"], result["num_workers"]
    ours = medians[OURS]
    links = f"{workers} workers, {result['megabits']:g} Mbit/s"
    if result["precision"] != "float32":
        workers = f"{result['precision']}, {workers}"
        links = f"{result['precision']}, {links}"
    whole = medians[ALL_REDUCE]["state_bytes"]
    figures = [
        Figure(
            f"{workers} workers, the optimizer's state of a process, in parts of the whole",
            ours["state_bytes"] / whole,
            "",
            backend,
            target=1.02 / result["num_workers"],
        )
    ]
    for peer in result["ways"][1:]:
        theirs = medians[peer]
        pairs = (
            (f"{links}, a step", "seconds", "s", 1, _ENOUGH),
            (f"{links}, processor time of a step", "cpu_seconds", "s", 1, None),
            (f"{workers} workers, sent in a step", "bytes", "MB", 1e-6, _ENOUGH),
            (f"{workers} workers, memory at the peak of a step", "peak_megabytes", "MB", 1, None),
        )
        figures += [
            Figure(name, ours[key] * factor, unit, backend, peer, theirs[key] * factor, target)
            for name, key, unit, factor, target in pairs
        ]
    return figures


if __name__ == "__main__":
    sys.exit(main())

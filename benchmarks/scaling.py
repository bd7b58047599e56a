"""What a training over slow links costs: N processes, each in a network namespace of its own.

Its link to the others has 1 Gbit/s, or 100 Mbit/s, in each direction (`tc ... tbf`). The model has
BERT's shape, and so few tokens a step that communication rules: 10.3 million weights, 2 x 32 tokens
of real text a worker, AdamW. The rivals train the same model on the same rows, in turns, in the
same processes:

- torch: `Trainer` as it is and with each `gradient_compression`, against DistributedDataParallel
  through Accelerate: as people run it, with a hook that sends bfloat16, and with smaller buckets;
  and PowerSGD of rank 4, which sends far less and is another descent, as `"low_rank"` is.
- TensorFlow: likewise, against Keras's `fit` under `MultiWorkerMirroredStrategy`, mended.
- JAX: likewise, against Keras's `fit` under `DataParallel`.

With `--parts 4` each step adds up four such batches before anything is sent, on both sides. Where
two workers were measured at two speeds, a model of the costs says what more accelerators would come
to: a projection, and marked as one.

Samples a second of all workers, bytes that rank 0 sends in a step, and process time of a step of
rank 0; medians. Two cores compute for all, so that it can show what links cost, and not how
computing scales. Linux and root alone. Prints a table and writes the numbers as JSON:

    KERAS_BACKEND=torch python benchmarks/scaling.py [--workers 2 4 8] [--megabits 1000 100]
        [--parts 1] [--ways NAME ...] [--rounds 3] [--json RESULT.json] [--quick]
"""

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from processes import ONE_THREAD, find_backends, make_parser
from result import Figure, report
from shaped_links import Host, shaped_links

ALONE, OURS, OURS_BF16, OURS_FP16, OURS_RANK_4, OURS_RANK_8 = (
    "no communication",
    "Trainer",
    "Trainer, bfloat16",
    "Trainer, float16",
    "Trainer, rank 4",
    "Trainer, rank 8",
)
KERAS = "Keras"
DDP, DDP_BF16, DDP_BF16_4MB, POWER_SGD = (
    "DDP",
    "DDP, bf16 hook",
    "DDP, bf16 hook, 4 MB",
    "DDP, PowerSGD, rank 4",
)
OF_ACCELERATE = [DDP, DDP_BF16, DDP_BF16_4MB, POWER_SGD]
OF_TRAINER = [OURS, OURS_BF16, OURS_FP16, OURS_RANK_4, OURS_RANK_8]
WAYS = {
    "torch": [ALONE, *OF_TRAINER, *OF_ACCELERATE],
    "tensorflow": [ALONE, *OF_TRAINER, KERAS],
    "jax": [*OF_TRAINER, KERAS],
}
TARGETS = {
    "torch": [(DDP, 1.9), (DDP_BF16_4MB, 1.3), (POWER_SGD, 1.3)],
    "tensorflow": [(KERAS, 1.5)],
    "jax": [(KERAS, 1.5)],
}
"""By backend: how many times as fast as a rival the best of `Trainer`'s ways is to be."""
LIKE = {
    "torch": [(OURS, DDP), (OURS_BF16, DDP_BF16_4MB), (OURS_RANK_4, POWER_SGD)],
    "tensorflow": [(OURS, KERAS)],
    "jax": [(OURS, KERAS)],
}
"""By backend: a way and the rival that sends as much."""

SIZES = {"num_layers": 3, "hidden_dim": 256, "rows_each": 2, "warm_up": 2, "num_steps": 6}
QUICK = {"num_layers": 1, "hidden_dim": 32, "rows_each": 2, "warm_up": 1, "num_steps": 2}
_WORKER = Path(__file__).parent / "rivals" / "scaling.py"
_PORT = 29_501
_TIMEOUT = 900
_FITTED_WORKERS = 2
_SOME_BYTES = 10_000.0


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[8], help="default 8")
    parser.add_argument("--megabits", type=float, nargs="+", default=[1_000.0], help="default 1000")
    parser.add_argument("--parts", type=int, default=1, help="micro-batches of a step, default 1")
    parser.add_argument("--ways", nargs="+", help="names of those to measure, default all")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    results, figures = [], []
    for backend in find_backends():
        ways = [name for name in WAYS[backend] if name in (arguments.ways or [name])]
        if arguments.parts > 1 and KERAS in ways:
            ways.remove(KERAS)
            print("Keras left out: its accumulation does not run under a strategy")
        if not importlib.util.find_spec("accelerate"):
            left_out = [name for name in ways if name in OF_ACCELERATE]
            ways = [name for name in ways if name not in OF_ACCELERATE]
            print(*(f"{name} left out: accelerate is not installed\n" for name in left_out), sep="")
        if not ways:
            continue
        for num_workers in arguments.workers:
            for megabits in arguments.megabits:
                setting = {**(QUICK if arguments.quick else SIZES), "ways": ways}
                setting |= {"num_workers": num_workers, "rounds": arguments.rounds}
                setting |= {"parts": arguments.parts}
                setting["rows_each"] *= arguments.parts
                result = run(backend, setting, megabits)
                if result is None:
                    continue
                results.append(result)
                if not arguments.quick:
                    figures += judge(result)
    for backend in {result["backend"]: None for result in results}:
        show_projection([result for result in results if result["backend"] == backend])
    return report(arguments.json, figures, results) if results else 1


def show_projection(results: list[dict[str, Any]]) -> None:
    """Prints what accelerators would come to, by a model that is fitted to what was measured.

    A step takes what the processor and waiting take, whatever the link, and a multiple of the time
    in which the link carries its bytes: two numbers for each way, from two workers at two speeds of
    the link. A ring sends twice the bytes of two workers in the end. What is projected has a
    processor for itself as each of the two workers has, and no latency.
    """
    pairs = {
        result["megabits"]: result for result in results if result["num_workers"] == _FITTED_WORKERS
    }
    if len(pairs) < _FITTED_WORKERS:
        return
    slow, fast = (pairs[megabits] for megabits in (min(pairs), max(pairs)))
    print(f"PROJECTION, not measured: {slow['backend']}, samples/s of so many accelerators")
    counts = (8, 64, 1_024)
    links = (fast["megabits"], 10 * fast["megabits"])
    heads = [f"{count} at {link / 1e3:g} Gbit/s" for link in links for count in counts]
    print(f"    {'':24}", *(f"{head:>19}" for head in heads), sep="")
    for name in fast["results"]:
        seconds, wire = (
            [
                statistics.median(figures[key] for figures in run["results"][name])
                for run in (slow, fast)
            ]
            for key in ("seconds", "bytes")
        )
        times = [
            8e-6 * sent / run["megabits"] for sent, run in zip(wire, (slow, fast), strict=True)
        ]
        factor = (seconds[0] - seconds[1]) / (times[0] - times[1]) if wire[1] > _SOME_BYTES else 0.0
        fixed = max(seconds[1] - factor * times[1], 0.0)
        speeds = [
            count
            * fast["rows_each"]
            / (fixed + factor * 8e-6 * wire[1] * 2 * (count - 1) / count / link)
            for link in links
            for count in counts
        ]
        print(f"    {name:24}", *(f"{speed:>19.0f}" for speed in speeds), sep="", flush=True)


def end(number: int, _: Any) -> None:
    """Ends it after its processes and namespaces, which a second signal would leave behind."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def run(backend: str, setting: dict[str, Any], megabits: float) -> dict[str, Any] | None:
    """Returns what was measured in a setting, and prints it."""
    with shaped_links(setting["num_workers"], megabits) as hosts:
        answer = run_workers(backend, setting, hosts)
    if answer is None:
        return None
    num_workers = setting["num_workers"]
    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    print(
        f"{backend}, {num_workers} workers, {megabits:g} Mbit/s, "
        f"{answer['num_parameters'] / 1e6:.1f} M weights (load at the end {load})"
    )
    print(f"    {'':24}{'samples/s':>10}{'(range)':>14}{'MB a step':>11}{'CPU ms':>8}{'loss':>8}")
    speeds = {}
    for name, rounds in answer["results"].items():
        samples = sorted(
            num_workers * setting["rows_each"] / figures["seconds"] for figures in rounds
        )
        speeds[name] = statistics.median(samples)
        megabytes, milliseconds = (
            statistics.median(figures[key] for figures in rounds) * factor
            for key, factor in (("bytes", 1e-6), ("cpu_seconds", 1e3))
        )
        print(
            f"    {name:24}{speeds[name]:>10.1f}{samples[0]:>7.1f}-{samples[-1]:<6.1f}"
            f"{megabytes:>11.1f}{milliseconds:>8.0f}{rounds[-1]['loss']:>8.3f}",
            flush=True,
        )
    facts = {"backend": backend, "megabits": megabits, "samples_per_second": speeds}
    return {**setting, **answer, **facts}


def run_workers(
    backend: str,
    setting: dict[str, Any],
    hosts: list[Host],
    script: Path = _WORKER,
    **variables: str,
) -> Any:
    """Returns what rank 0 of a script prints last, as JSON, or `None` where a worker fails."""
    paths = [str(_WORKER.parents[2]), os.environ.get("PYTHONPATH", "")]
    shared = {
        **os.environ,
        **ONE_THREAD,
        **variables,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "WORLD_SIZE": str(len(hosts)),
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": str(_PORT),
        "LOCAL_RANK": "0",
        "GLOO_SOCKET_IFNAME": Host.interface,
    }
    workers = [f"{host.address}:{_PORT + 1}" for host in hosts]

    def environment(rank: int) -> dict[str, str]:
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        config = {"TF_CONFIG": json.dumps(task)} if backend == "tensorflow" else {}
        return {**shared, **config, "RANK": str(rank)}

    command = [sys.executable, str(script), json.dumps(setting)]
    running = [
        subprocess.Popen(
            host.command(*command),
            env=environment(rank),
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=None if os.environ.get("SCALING_SHOWS") else subprocess.DEVNULL,
            text=True,
        )
        for rank, host in enumerate(hosts)
    ]
    try:
        printed, _ = running[0].communicate(timeout=_TIMEOUT)
        codes = [worker.wait(_TIMEOUT) for worker in running]
    finally:
        for worker in running:
            worker.kill()
    if any(codes):
        print(f"{backend}, {len(hosts)} workers: ended with {codes}", flush=True)
        return None
    return json.loads(printed.splitlines()[-1])


def judge(result: dict[str, Any]) -> list[Figure]:
    """Returns the best of our ways beside each peer, and each way beside the peer that is alike."""
    speeds, backend = result["samples_per_second"], result["backend"]
    ours = {name: speed for name, speed in speeds.items() if name.startswith(OURS)}
    if not ours:
        return []
    best = max(ours, key=lambda name: ours[name])
    pairs: dict[tuple[str, str], float | None] = dict.fromkeys(LIKE[backend])
    pairs |= {(best, peer): least for peer, least in TARGETS[backend]}
    links = f"{result['num_workers']} workers, {result['megabits']:g} Mbit/s"
    return [
        Figure(
            f"{links}, {way}",
            speeds[way],
            "samples/s",
            backend,
            peer,
            speeds[peer],
            least,
            is_less_better=False,
        )
        for (way, peer), least in pairs.items()
        if way in speeds and peer in speeds
    ]


if __name__ == "__main__":
    sys.exit(main())

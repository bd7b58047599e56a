"""What a parameter server is worth where one of the workers is slow, against an all-reduce.

A small encoder of BERT's kind is trained on masked words of real paragraphs, by workers on this
machine: by all-reduce, in which each step waits for all of them, and by a parameter server, in
which none waits for another. One worker runs for a quarter of the time: it is stopped in between,
turn by turn, by signals. Each way takes that of a few learning rates with which it is the fastest
to the loss on unseen documents that both of them reach, and starts anew in each round.

Printed are updates a second, megabytes an update over the loopback device, and the seconds to that
loss; the time in which everything compiles is left out. An update of the all-reduce is by the rows
of all workers, one of the parameter server by those of one. Ray hands large arrays from process to
process of a machine in shared memory, so that they are not among its megabytes; a call of Ray's
that does nothing, there and back, is named instead.

    KERAS_BACKEND=torch python benchmarks/parameter_server.py [--workers 3] [--slowness 1 4]
        [--rates 0.001 0.002] [--rounds 5] [--json RESULT.json] [--quick]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import ONE_THREAD, find_backends, make_parser
from result import Figure, report

ALL_REDUCE, SERVED = "all-reduce", "parameter server"
FULL = {"num_documents": 1_280, "epochs": 5, "rows": 4, "staleness_bound": None}
QUICK = {"num_documents": 320, "epochs": 3, "rows": 4, "staleness_bound": None}
_RIVAL = Path(__file__).parent / "rivals" / "parameter_server.py"
_LEAST = 1.5
"""How many times as fast to the same loss, with one worker slowed four times."""
_TIMEOUT = 900

Numbers = dict[str, Any]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=3, help="default 3")
    parser.add_argument("--slowness", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3])
    arguments = parser.parse_args()
    results, figures = [], []
    for backend in find_backends():
        for slowness in arguments.slowness:
            setting = {**(QUICK if arguments.quick else FULL), "slowness": slowness}
            setting["num_workers"] = arguments.workers
            runs = [
                {"way": way, "rate": rate, "seed": seed}
                for seed in range(arguments.rounds)
                for rate in (arguments.rates[:1] if arguments.quick else arguments.rates)
                for way in (ALL_REDUCE, SERVED)  # In turns.
            ]
            trainings = [options | run(backend, setting | options) for options in runs]
            result = {"backend": backend, "setting": setting, "runs": trainings}
            results.append(result)
            best = show(result)
            if best is not None:
                name = f"seconds to the same loss, one worker slowed {slowness:g} times"
                least = _LEAST if slowness > 1 and not arguments.quick else None
                peer = best[ALL_REDUCE]
                figures.append(Figure(name, best[SERVED], "s", backend, ALL_REDUCE, peer, least))
    return report(arguments.json, figures, results) if results else 1


def run(backend: str, setting: Numbers) -> Numbers:
    """Returns what a training has printed; nothing where it failed."""
    paths = [str(_RIVAL.parents[2]), str(_RIVAL.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable]
    if setting["way"] == ALL_REDUCE:
        command += ["-m", "keras_deepseek.cli", "launch", "--nproc", str(setting["num_workers"])]
    with tempfile.TemporaryDirectory() as folder:
        command += [str(_RIVAL), json.dumps(setting | {"folder": folder})]
        done = subprocess.run(
            command,
            env={
                **os.environ,
                **ONE_THREAD,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            },
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    marked = [line.partition("FOUND ")[2] for line in done.stdout.splitlines() if "FOUND " in line]
    if done.returncode or not marked:
        print(f"{backend}, {setting}: failed with {done.returncode}: {done.stderr[-500:]}")
        return {}
    return dict(json.loads(marked[0]))


def show(result: Numbers) -> dict[str, float] | None:
    """Prints what the ways have come to, and returns the seconds of each to the same loss."""
    setting = result["setting"]
    load = " ".join(f"{average:.1f}" for average in os.getloadavg())
    print(
        f"{result['backend']}, {setting['num_workers']} workers, one of them slowed "
        f"{setting['slowness']:g} times (load at the end {load})"
    )
    by_way: dict[str, list[Numbers]] = {ALL_REDUCE: [], SERVED: []}
    for training in result["runs"]:
        if "curve" in training:
            by_way[training["way"]].append(training)
    if not all(by_way.values()):
        return None
    goal = max(map(find_reached, by_way.values()))
    print(f"    {'':18}{'rate':>7}{'updates/s':>11}{'MB each':>9}{'s to ' + f'{goal:.3f}':>12}")
    best = {}
    for way, its in by_way.items():
        times: dict[float, list[float]] = {}
        for training in its:
            times.setdefault(training["rate"], []).append(seconds_to(training["curve"], goal))
        best[way] = min(statistics.median(seconds_to_goal) for seconds_to_goal in times.values())
        for rate, seconds_to_goal in times.items():
            same = [training for training in its if training["rate"] == rate]
            seconds, updates, _ = same[-1]["curve"][-1]
            print(
                f"    {way:18}{rate:>7g}{updates / seconds:>11.1f}"
                f"{same[-1]['bytes'] / updates * 1e-6:>9.2f}"
                f"{statistics.median(seconds_to_goal):>12.1f}",
                flush=True,
            )
        calls = [training["call"] for training in its if training["call"] is not None]
        if calls:
            print(f"    a call of Ray's, there and back: {statistics.median(calls) * 1e3:.2f} ms")
    return best


def find_reached(runs: list[Numbers]) -> float:
    """Returns the loss to which a way comes by one of its rates whatever the seed."""
    lowest: dict[float, list[float]] = {}
    for training in runs:
        loss = min(loss for *_, loss in training["curve"])
        lowest.setdefault(training["rate"], []).append(loss)
    return min(map(max, lowest.values()))


def seconds_to(curve: list[list[float]], goal: float) -> float:
    """Returns the seconds until a loss was reached, between two epochs by a straight line."""
    last_point = None
    for seconds, _, loss in curve:
        if loss <= goal:
            if last_point is None:
                return seconds
            share = (last_point[1] - goal) / (last_point[1] - loss)
            return last_point[0] + share * (seconds - last_point[0])
        last_point = seconds, loss
    return float("inf")


if __name__ == "__main__":
    sys.exit(main())

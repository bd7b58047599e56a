"""Studio beside TensorBoard: start, a million points, 1,000 runs, page weight, cost of recording.

Both get the same events, Studio as run records and TensorBoard as event files, and are asked in
turns for what their pages ask for, until the answer has the last point. TensorBoard has its data
server, no TensorFlow, which it would take seconds to import, and looks for new points each second,
not each five. Times are medians of rounds, from the start of the process, with the CPU time of the
server and its children. Page weight is what a new Chromium loads, as transferred and as decoded.

Recording is measured on each backend in steps that wait for 17 ms, as for an accelerator: by
Keras's callback `TensorBoard` at each step, by `RunRecorder`, and by `Trainer(run_record=...)`. The
second epoch of each training counts, without what is done once in a run. Where the processor
computes the step, its time varies by more than recording costs.

Studio is ahead in each figure, and recording takes at most 1 % of a step of 20 ms. Eight minutes on
two idle cores:

    pip install tensorboard==2.21 tensorboardX playwright    # CHROMIUM=... names the browser
    python benchmarks/studio.py [--rounds 5] [--json RESULT.json] [--quick] [--only PART...]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from processes import find_backends, make_parser, run_script
from result import Figure, report
from studio_servers import OURS, PEER, Picture, Run, serving

SIZES = {"start": (3, 1000), "points": (1, 1_000_000), "runs": (1000, 100)}
QUICK = {"start": (3, 100), "points": (1, 10_000), "runs": (20, 100)}
"""The number of runs, and of points in each."""
PARTS = (*SIZES, "weight", "recording")

SPIKE, NEW_POINTS, UPDATES = 50.0, 100, 3
FITS = 3  # Trainings a round: one is short, and what else runs on the machine varies.
STEP, WAIT, SHARE = 20.0, 0.017, 1.0
"""A step's milliseconds, the seconds of it that are a wait, and the percent for recording."""

Samples = dict[str, list[float]]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for part in arguments.only:
        if part in SIZES:
            sizes = (QUICK if arguments.quick else SIZES)[part]
            new_figures, details[part] = measure_pages(*sizes, arguments.rounds)
            figures += new_figures
        elif part == "weight":
            new_figures, details[part] = measure_weight()
            figures += new_figures
        else:
            num_steps = 5 if arguments.quick else 25
            for backend in find_backends():
                new_figures, details[f"{part}, {backend}"] = measure_recording(
                    backend, arguments.rounds, num_steps
                )
                figures += new_figures
    print_table(figures)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return report(arguments.json, figures, details)


def measure_pages(num_runs: int, num_points: int, rounds: int) -> tuple[list[Figure], Any]:
    """Measures from the start to the picture of all runs, then to that of a hundred new points."""
    names = [f"run{i:04}" for i in range(num_runs)]
    samples: Samples = defaultdict(list)
    pictures: dict[str, Picture] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, run_name in enumerate(names):
            run = Run(folder, run_name)
            values = make_values(num_points, seed)
            values[num_points * 2 // 3 + 1] = SPIKE
            run.add(1, values)
            if run_name != names[-1]:
                run.close()
        last = num_points
        for _ in range(rounds):
            for kind in (OURS, PEER):
                with serving(kind, folder) as server:
                    pictures[kind] = server.wait(names, num_points)[names[-1]]
                    samples[f"first {kind}"].append(time.monotonic() - server.begun)
                    samples[f"first, CPU {kind}"].append(server.cpu_seconds())
                    for _ in range(UPDATES):
                        time.sleep(1.5)  # The server rests, as between two polls of its page.
                        run.add(last + 1, make_values(NEW_POINTS, last))
                        last += NEW_POINTS
                        begun, cpu = time.monotonic(), server.cpu_seconds()
                        server.wait(names[-1:], last)
                        samples[f"update {kind}"].append(time.monotonic() - begun)
                        samples[f"update, CPU {kind}"].append(server.cpu_seconds() - cpu)
        run.close()
    what = f"{num_points:,} points" if num_runs == 1 else f"{num_runs:,} runs"
    figures = [
        compare(f"{what}, start to the picture", samples, "first", "s"),
        compare(f"{what}, start to the picture, CPU time", samples, "first, CPU", "s"),
        compare(f"{what}, new points to the picture", samples, "update", "s"),
    ]
    if num_runs == 1:
        # All points are looked at if the one spike among them is on the picture.
        shown_points = {k: num_points if p.most >= SPIKE else p.points for k, p in pictures.items()}
        figures.append(
            Figure(
                f"{what}, of which the picture shows",
                *(shown_points[OURS], "points"),
                peer=PEER,
                theirs=shown_points[PEER],
                target=1.0,
                is_less_better=False,
            )
        )
    return figures, {"seconds": samples, "pictures": {k: p._asdict() for k, p in pictures.items()}}


def make_values(number: int, seed: int) -> list[float]:
    """Returns a noisy curve."""
    noise = np.random.default_rng(seed).normal(scale=0.1, size=number)
    return list((np.exp(-np.linspace(0, 3, number)) + 0.2 + noise).tolist())


def compare(what: str, samples: Samples, name: str, unit: str) -> Figure:
    """Returns the medians of both, of which ours has to be ahead."""
    ours, theirs = (statistics.median(samples[f"{name} {kind}"]) for kind in (OURS, PEER))
    return Figure(what, ours, unit, peer=PEER, theirs=theirs, target=1.0)


def measure_weight() -> tuple[list[Figure], Any]:
    """Returns what a new browser loads until the page shows a run."""
    if find_spec("playwright") is None:
        print("page weight: left out, as Playwright is not installed")
        return [], None
    weights = {}
    script = Path(__file__).parent / "rivals" / "page_weight.py"
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), "one")
        run.add(1, make_values(300, 0))
        for kind in (OURS, PEER):
            with serving(kind, Path(name)) as server:
                server.wait(["one"], 300)
                call = [sys.executable, str(script), server.address]
                output = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout
                weights[kind] = {key: number / 1e3 for key, number in json.loads(output).items()}
        run.close()
    figures = [
        Figure(f"page, {key}", weights[OURS][key], "kB", "", PEER, weights[PEER][key], 1.0)
        for key in ("transferred", "decoded")
    ]
    return figures, weights


def measure_recording(backend: str, rounds: int, num_steps: int) -> tuple[list[Figure], Any]:
    """Returns what a recorded step costs, in percent of a step of 20 ms."""
    setting = {"rounds": FITS * rounds, "num_steps": num_steps, "wait": WAIT}
    times = run_script("recording.py", backend, json.dumps(setting))
    if times is None:
        return [], None

    def added(name: str, base: str) -> float:
        pairs = zip(times[name]["cpu"], times[base]["cpu"], strict=True)
        return (
            100
            / STEP
            * statistics.median(seconds - base_seconds for seconds, base_seconds in pairs)
        )

    unit = f"% of {STEP:.0f} ms"
    trainer = added("Trainer, recorded", "Trainer")
    ours = added("RunRecorder", "model.fit")
    figures = [
        Figure("recording by Trainer, CPU time", trainer, unit, backend, target=SHARE),
        Figure("recording by RunRecorder, CPU time", ours, unit, backend, target=SHARE),
    ]
    if PEER in times:
        theirs = added(PEER, "model.fit")
        figures.append(Figure("recording by TensorBoard, CPU time", theirs, unit, backend))
        pair = [statistics.median(times[name]["cpu"]) for name in ("RunRecorder", PEER)]
        what = "step of `fit` with the callback, CPU time"
        figures.append(Figure(what, pair[0], "ms", backend, PEER, pair[1], 1.0))
    return figures, times


def print_table(figures: list[Figure]) -> None:
    print(f"| | {OURS} | {PEER} |")
    print("|---|---|---|")
    for figure in figures:
        theirs = "" if figure.theirs is None else f"{figure.theirs:,.4g} {figure.unit}"
        title = f"{figure.backend}, {figure.name}" if figure.backend else figure.name
        print(f"| {title} | {figure.ours:,.4g} {figure.unit} | {theirs} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())

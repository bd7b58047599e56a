"""`ServingEngine` beside mosec, LitServe, TorchServe, Triton: a simulated accelerator, one client.

A batch of n rows takes 4 + 0.25 n ms (`rivals/accelerator.py`), so what is measured is how a server
fills batches and what it costs. `E` is the served requests over those that batches of all clients,
or full ones, would allow; `busy` the share of the time inside the accelerator; `cpu ms` what a
request takes of the processor, in all of the server's processes. The servers take turns in each
round; the table has medians. At twice the load, an answer later than half a second is of no use.
Ours bounds the wait by itself, and once more by `target_latency=0.4`, in a row of its own. A peer
that is not installed is left out: `--python` names the interpreters that have them (`pip install
mosec litserve nvidia-pytriton torchserve torch`).

With `--models` ONNX Runtime computes files that `rivals/write_models.py` wrote, in one thread, and
`E` is over what it does in a loop without a server, measured before each round.

`python benchmarks/serving.py --rounds 3 --python PYTHON --models FILE...`
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from processes import make_parser
from result import Figure, count, report
from server_processes import (
    LITSERVE,
    MOSEC,
    OURS,
    ROW,
    TORCHSERVE,
    Rival,
    Server,
    find_python,
    serving,
)

# Found where `server_processes` has said.
from accelerator import SECONDS_A_BATCH, SECONDS_A_ROW  # isort:skip
from accelerator import MODEL_VARIABLE, open_session  # isort:skip

LIMIT = 32
CEILING = LIMIT / (SECONDS_A_BATCH + SECONDS_A_ROW * LIMIT)
CLIENTS = (1, 8, 32, 64)
Found = Iterator[tuple[str, dict[str, Any]]]
"""Settings, and what was measured in each."""
OPEN_LOADS = (0.1, 0.3, 0.5, 0.8)
OVERLOAD = "Poisson, load 2"
KEEPS_UP = 0.95
"""The part of the requests that a server answers, of what another answers at the same load."""
TENSOR_BODY = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": ROW}]}
RIVALS = (
    OURS,
    MOSEC,
    Rival("mosec, 1 ms", "serve_mosec.py", MOSEC.path, MOSEC.body, ("1",), "mosec"),
    LITSERVE,
    TORCHSERVE,
    Rival(
        "Triton, 1 ms", "serve_pytriton.py", "/v2/models/m/infer", TENSOR_BODY, ("1",), "pytriton"
    ),
)


def ceiling(num_clients: int) -> float:
    """Returns the requests a second of batches of all clients, or of full ones."""
    rows = min(num_clients, LIMIT)
    return rows / (SECONDS_A_BATCH + SECONDS_A_ROW * rows)


def measure(server: Server, seconds: float) -> Found:
    """Yields what each setting gave."""
    for num_clients in CLIENTS:
        numbers = server.ask(connections=num_clients, seconds=seconds)
        numbers["E"] = numbers["requests_per_second"] / ceiling(num_clients)
        yield count(num_clients, "client"), numbers
    for load in OPEN_LOADS:
        rate = load * CEILING
        yield f"Poisson, load {load}", server.ask(connections=256, seconds=seconds, rate=rate)
    rate = 0.3 * CEILING
    yield "bursts of 8, load 0.3", server.ask(connections=256, seconds=seconds, rate=rate, burst=8)
    yield from overload(server, seconds)


def overload(server: Server, seconds: float) -> Found:
    """Yields what came of twice as many requests as can be answered."""
    setting = {"connections": 2000, "rate": 2 * CEILING, "useful_seconds": 0.5}
    yield OVERLOAD, server.ask(seconds=seconds, **setting)


def measure_model(server: Server, path: Path, ceilings: dict[int, float], seconds: float) -> Found:
    """Yields what clients of a real model met with."""
    for num_clients in CLIENTS:
        numbers = server.ask(connections=num_clients, seconds=seconds)
        numbers["E"] = numbers["requests_per_second"] / ceilings[num_clients]
        yield f"{path.stem}, {count(num_clients, 'client')}", numbers


def loop_without_a_server(path: Path, seconds: float) -> dict[int, float]:
    """Returns the rows a second of batches as large as the clients are many."""
    session, ceilings = open_session(str(path)), {}
    name, features = session.get_inputs()[0].name, session.get_inputs()[0].shape[1]
    for num_clients in CLIENTS:
        x = np.full((min(num_clients, LIMIT), features), 0.1, "float32")
        rows, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            session.run(None, {name: x})
            rows += len(x)
        ceilings[num_clients] = rows / (time.perf_counter() - start)
    return ceilings


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], help="interpreters with the peers"
    )
    parser.add_argument("--only", nargs="*", help="names of servers")
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="ONNX files")
    arguments = parser.parse_args()
    rivals = [rival for rival in RIVALS if not arguments.only or rival.name in arguments.only]
    pythons = {rival.name: find_python(arguments.python, rival) for rival in rivals}
    rounds = Rounds(
        {rival: pythons[rival.name] for rival in rivals if pythons[rival.name]},
        2.0 if arguments.quick else 6.0,
    )
    for number in range(1 if arguments.quick else arguments.rounds):
        print(f"round {number + 1}", file=sys.stderr, flush=True)
        rounds.simulate()
        for path in arguments.models:
            rounds.compute(path)
    medians = rounds.medians()
    print_tables(medians)
    other_pythons = [python for python in pythons.values() if python and python != sys.executable]
    return report(arguments.json, make_figures(medians), medians, other_pythons)


def make_figures(medians: dict[str, dict[str, dict[str, float]]]) -> list[Figure]:
    """Returns ours beside the best of the peers, in each setting.

    Clients that wait for their answers ask as fast as the server answers, and so does twice the
    load. At lower loads, every server that keeps up answers as many requests, and how late counts.
    """
    figures = []
    for setting, servers in medians.items():
        if OURS.name not in servers:
            continue
        most = max(numbers["requests_per_second"] for numbers in servers.values())
        is_rate = "client" in setting or setting == OVERLOAD
        key, unit, choose = "p99_ms", "ms at p99", min
        if is_rate:
            key, unit, choose = "requests_per_second", "requests/s", max
        peers = [
            name
            for name, numbers in servers.items()
            if not name.startswith(OURS.name)
            and (is_rate or numbers["requests_per_second"] > KEEPS_UP * most)
        ]
        figures += _beside(setting, servers, key, unit, choose, peers)
        if setting == count(CLIENTS[-1], "client"):
            of_processor = _beside(setting, servers, "cpu_ms", "ms", min, peers)
            figures += [
                replace(figure, name=f"{setting}, processor time of a request")
                for figure in of_processor
            ]
    return figures


def _beside(
    setting: str,
    servers: dict[str, dict[str, float]],
    key: str,
    unit: str,
    choose: Callable[..., str],
    peers: list[str],
) -> list[Figure]:
    """Returns the figure of ours beside the best of the peers, or none where there is no peer."""
    if not peers:
        return []
    peer = choose(peers, key=lambda name: servers[name][key])
    ours, theirs = servers[OURS.name][key], servers[peer][key]
    return [Figure(setting, ours, unit, peer=peer, theirs=theirs, is_less_better=choose is min)]


class Rounds:
    """What was measured so far.

    Args:
        rivals: dict from each `Rival` to the interpreter that has it.
        seconds: float. Of each setting.
    """

    def __init__(self, rivals: dict[Rival, str], seconds: float) -> None:
        self._rivals = rivals
        self._seconds = seconds
        self._found: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def simulate(self) -> None:
        """Measures each server before the simulated accelerator."""
        for rival, python in self._rivals.items():
            self._note(rival.name, rival, partial(measure, seconds=self._seconds), python)
        if OURS in self._rivals:
            name = f"{OURS.name}, target_latency"
            by_overload = partial(overload, seconds=self._seconds)
            self._note(name, OURS, by_overload, "", "--target-latency", "0.4")

    def compute(self, path: Path) -> None:
        """Measures each server before a real model."""
        by_model = partial(
            measure_model,
            path=path,
            ceilings=loop_without_a_server(path, self._seconds / 2),
            seconds=self._seconds,
        )
        features = open_session(str(path)).get_inputs()[0].shape[1]
        body = {"instances": [[0.1] * features]}
        for rival, python in self._rivals.items():
            if "instances" in rival.body:
                rival_with_body = replace(rival, body=body)
                self._note(
                    rival.name, rival_with_body, by_model, python, **{MODEL_VARIABLE: str(path)}
                )

    def medians(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns the median of each number, by setting and server."""
        return {
            setting: {
                name: {key: statistics.median(numbers[key] for numbers in many) for key in many[0]}
                for name, many in servers.items()
            }
            for setting, servers in self._found.items()
        }

    def _note(
        self,
        name: str,
        rival: Rival,
        measure_all: Callable[[Server], Found],
        python: str,
        *arguments: str,
        **variables: str,
    ) -> None:
        print(name, file=sys.stderr, flush=True)
        try:
            with serving(rival, python, *arguments, **variables) as server:
                for setting, numbers in measure_all(server):
                    self._found.setdefault(setting, {}).setdefault(name, []).append(numbers)
        # It does not start, or hangs up on its clients: what was measured before counts.
        except (TimeoutError, subprocess.CalledProcessError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)


def print_tables(medians: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints a table a kind of setting."""
    titles = "| | server | requests/s | E | p50 / p99 / sd ms | rows a batch | busy | cpu ms |"
    print(f"{titles} refused, late |\n" + "|---" * 9 + "|")
    for setting, servers in medians.items():
        for name, numbers in servers.items():
            share = f"{numbers['E']:.2f}" if "E" in numbers else ""
            print(
                f"| {setting} | {name} | {numbers['requests_per_second']:.0f} | {share} "
                f"| {numbers['p50_ms']:.1f} / {numbers['p99_ms']:.1f} "
                f"/ {numbers['deviation_ms']:.1f} "
                f"| {numbers['rows_per_batch']:.1f} | {numbers['busy']:.2f} "
                f"| {numbers['cpu_ms']:.3f} "
                f"| {numbers['refused']:.0f}, {numbers['late']:.0f} |"
            )


if __name__ == "__main__":
    sys.exit(main())

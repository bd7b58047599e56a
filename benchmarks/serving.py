"""`ServingEngine` beside mosec, LitServe, TorchServe, Triton: a simulated accelerator, one client.

A batch of n rows takes 4 + 0.25 n ms (`rivals/accelerator.py`), so what is measured is how a server
fills batches and what it costs. `E` is the served requests over those that batches of all clients,
or full ones, would allow; `busy` the share of the time inside the accelerator; `cpu ms` what a
request takes of the processor, in all of the server's processes. The servers take turns in each
round; the table has medians. At twice the load, an answer later than half a second is of no use. A
peer that is not installed is left out: `--python` names the interpreter that has them (`pip install
mosec litserve nvidia-pytriton torchserve torch`).

`python benchmarks/serving.py --rounds 3 --python PYTHON`
"""

import json
import statistics
import sys
from typing import Any

from processes import make_parser
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

from accelerator import SECONDS_A_BATCH, SECONDS_A_ROW  # Where `server_processes` looks. isort:skip

LIMIT = 32
CEILING = LIMIT / (SECONDS_A_BATCH + SECONDS_A_ROW * LIMIT)
CLIENTS = (1, 8, 32, 64)
OPEN_LOADS = (0.1, 0.3, 0.5, 0.8)
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


def measure(server: Server, seconds: float) -> dict[str, dict[str, Any]]:
    """Returns what each setting gave."""
    found = {}
    for num_clients in CLIENTS:
        name = f"{num_clients} client{'s' * (num_clients > 1)}"
        found[name] = server.ask(connections=num_clients, seconds=seconds)
        found[name]["E"] = found[name]["requests_per_second"] / ceiling(num_clients)
    for load in OPEN_LOADS:
        rate = load * CEILING
        found[f"Poisson, load {load}"] = server.ask(connections=256, seconds=seconds, rate=rate)
    found["bursts of 8, load 0.3"] = server.ask(
        connections=256, seconds=seconds, rate=0.3 * CEILING, burst=8
    )
    found["Poisson, load 2"] = server.ask(
        connections=2000, seconds=seconds, rate=2 * CEILING, useful_seconds=0.5
    )
    return found


def median_of(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the median of each number."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], help="interpreters with the peers"
    )
    parser.add_argument("--only", nargs="*", help="names of servers")
    arguments = parser.parse_args()
    seconds = 2.0 if arguments.quick else 6.0
    rivals = [one for one in RIVALS if not arguments.only or one.name in arguments.only]
    pythons = {one.name: find_python(arguments.python, one) for one in rivals}
    rivals = [one for one in rivals if pythons[one.name]]
    rounds: dict[str, list[dict[str, dict[str, Any]]]] = {one.name: [] for one in rivals}
    for number in range(1 if arguments.quick else arguments.rounds):
        for rival in rivals:
            print(f"round {number + 1}: {rival.name}", file=sys.stderr, flush=True)
            try:
                with serving(rival, pythons[rival.name]) as server:
                    rounds[rival.name].append(measure(server, seconds))
            except TimeoutError as error:
                print(error, file=sys.stderr, flush=True)
    measured = {name: many for name, many in rounds.items() if many}
    found = {
        setting: {
            name: median_of([one[setting] for one in many]) for name, many in measured.items()
        }
        for setting in next(iter(measured.values()))[0]
    }
    print_tables(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def print_tables(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints a table a kind of setting."""
    titles = "| | server | requests/s | E | p50 / p99 / sd ms | rows a batch | busy | cpu ms |"
    print(f"{titles} refused, late |\n" + "|---" * 9 + "|")
    for setting, servers in found.items():
        for name, one in servers.items():
            share = f"{one['E']:.2f}" if "E" in one else ""
            print(
                f"| {setting} | {name} | {one['requests_per_second']:.0f} | {share} "
                f"| {one['p50_ms']:.1f} / {one['p99_ms']:.1f} / {one['deviation_ms']:.1f} "
                f"| {one['rows_per_batch']:.1f} | {one['busy']:.2f} | {one['cpu_ms']:.3f} "
                f"| {one['refused']:.0f}, {one['late']:.0f} |"
            )


if __name__ == "__main__":
    main()

"""`ServingEngine` beside mosec, LitServe and Triton: a simulated accelerator, one client.

A batch of n rows takes 4 + 0.25 n ms (`rivals/accelerator.py`), so what is measured is how a server
fills batches and what it costs. `E` is the served requests over those that batches of all clients,
or full ones, would allow; `busy` the share of the time inside the accelerator; `cpu ms` what a
request takes of the processor, in all of the server's processes. The servers take turns in each
round; the table has medians. At twice the load, an answer later than half a second is of no use. A
peer that is not installed is left out: `--python` names the interpreter that has them (`pip install
mosec litserve nvidia-pytriton`).

`python benchmarks/serving.py --rounds 3 --python PYTHON`
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import make_parser

FOLDER = Path(__file__).parent / "rivals"
sys.path.insert(0, str(FOLDER))

from accelerator import SECONDS_A_BATCH, SECONDS_A_ROW, VARIABLE, read_counts  # noqa: E402

ROW = [0.1] * 16
LIMIT = 32
CEILING = LIMIT / (SECONDS_A_BATCH + SECONDS_A_ROW * LIMIT)
CLIENTS = (1, 8, 32, 64)
OPEN_LOADS = (0.1, 0.3, 0.5, 0.8)
ROWS_BODY = {"instances": [ROW]}
TENSOR_BODY = {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": ROW}]}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rival:
    """A server: the script that starts it, its arguments behind the port, and how it is asked."""

    name: str
    script: str
    path: str
    body: dict[str, Any]
    arguments: tuple[str, ...] = ()
    package: str = ""


OURS = Rival("keras_deepseek", "serve_keras_deepseek.py", "/v1/models/model:predict", ROWS_BODY)
RIVALS = (
    OURS,
    Rival("mosec, 10 ms", "serve_mosec.py", "/inference", ROWS_BODY, ("10",), "mosec"),
    Rival("mosec, 1 ms", "serve_mosec.py", "/inference", ROWS_BODY, ("1",), "mosec"),
    Rival("LitServe, 1 ms", "serve_litserve.py", "/predict", ROWS_BODY, ("1",), "litserve"),
    Rival(
        "Triton, 1 ms", "serve_pytriton.py", "/v2/models/m/infer", TENSOR_BODY, ("1",), "pytriton"
    ),
)


@dataclass
class Server:
    """A server that runs, and what it has used."""

    rival: Rival
    port: int
    process: subprocess.Popen[bytes]
    counts: Path

    def ask(self, **setting: Any) -> dict[str, Any]:
        """Returns what a client measured, and what the server did meanwhile."""
        setting = {
            "port": self.port,
            "path": self.rival.path,
            "body": self.rival.body,
            "warm_up": 1.0,
            **setting,
        }
        before, cpu = read_counts(self.counts), cpu_seconds(self.process.pid)
        start = time.monotonic()
        command = [sys.executable, str(FOLDER / "serving_client.py"), json.dumps(setting)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # The client rests for a second at its end.
        seconds = time.monotonic() - start - 1.0
        after = read_counts(self.counts)
        rows = max(after[1] - before[1], 1)
        return {
            **json.loads(output),
            "busy": (after[2] - before[2]) / seconds,
            "rows_per_batch": rows / max(after[0] - before[0], 1),
            "cpu_ms": 1000 * (cpu_seconds(self.process.pid) - cpu) / rows,
        }


def cpu_seconds(pid: int) -> float:
    """Returns the processor's seconds of a process and all below it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / TICKS
    return own + sum(cpu_seconds(int(child)) for child in children)


def find_port() -> int:
    """Returns a port that is free, and the two after it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1] - 3


@contextmanager
def serving(rival: Rival, python: str) -> Iterator[Server]:
    """Starts a server, and ends it with all of its processes."""
    with tempfile.TemporaryDirectory() as folder:
        counts, port = Path(folder) / "counts", find_port()
        environment = {**os.environ, VARIABLE: str(counts), "PYTHONPATH": str(FOLDER.parents[1])}
        interpreter = sys.executable if rival is OURS else python
        command = [interpreter, str(FOLDER / rival.script), str(port), *rival.arguments]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            server = Server(rival, port, process, counts)
            wait_until_it_answers(server)
            yield server
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_it_answers(server: Server) -> None:
    """Returns when a request was answered with 200."""
    for _ in range(120):
        time.sleep(0.5)
        try:
            found = server.ask(connections=1, seconds=0.3, warm_up=0.0)
        except subprocess.CalledProcessError:
            continue
        if found["requests_per_second"]:
            return
    raise TimeoutError(f"{server.rival.name} does not answer.")


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
    parser.add_argument("--python", default=sys.executable, help="an interpreter with the peers")
    parser.add_argument("--only", nargs="*", help="names of servers")
    arguments = parser.parse_args()
    seconds = 2.0 if arguments.quick else 6.0
    rivals = [one for one in RIVALS if not arguments.only or one.name in arguments.only]
    rivals = [
        one for one in rivals if not one.package or has_package(arguments.python, one.package)
    ]
    rounds: dict[str, list[dict[str, dict[str, Any]]]] = {one.name: [] for one in rivals}
    for number in range(1 if arguments.quick else arguments.rounds):
        for rival in rivals:
            print(f"round {number + 1}: {rival.name}", file=sys.stderr, flush=True)
            try:
                with serving(rival, arguments.python) as server:
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


def has_package(python: str, package: str) -> bool:
    """Whether an interpreter has a package."""
    return not subprocess.run(
        [python, "-c", f"import {package}"], capture_output=True, check=False
    ).returncode


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

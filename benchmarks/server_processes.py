"""Servers that a benchmark starts: ours and its peers, each with the same simulated accelerator.

`serving.py` measures how fast they are, `serving_behaviour.py` what they do when things go wrong.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "rivals"
sys.path.insert(0, str(FOLDER))

from accelerator import NUM_FEATURES, VARIABLE, read_counts  # noqa: E402

ROW = [0.1] * NUM_FEATURES
ROWS_BODY = {"instances": [ROW]}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, eq=False)
class Rival:
    """A server: the script that starts it, its arguments behind the port, and how it is asked."""

    name: str
    script: str
    path: str
    body: dict[str, Any]
    arguments: tuple[str, ...] = ()
    package: str = ""


OURS = Rival("keras_deepseek", "serve_keras_deepseek.py", "/v1/models/model:predict", ROWS_BODY)
MOSEC = Rival("mosec, 10 ms", "serve_mosec.py", "/inference", ROWS_BODY, ("10",), "mosec")
LITSERVE = Rival("LitServe, 1 ms", "serve_litserve.py", "/predict", ROWS_BODY, ("1",), "litserve")
TORCHSERVE = Rival(
    "TorchServe, 1 ms", "serve_torchserve.py", "/predictions/m", ROWS_BODY, ("1",), "ts"
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
        start_counts, cpu = read_counts(self.counts), cpu_seconds(self.process.pid)
        start = time.monotonic()
        command = [sys.executable, str(FOLDER / "serving_client.py"), json.dumps(setting)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        # The client rests for a second at its end.
        seconds = time.monotonic() - start - 1.0
        after = read_counts(self.counts)
        rows = max(after[1] - start_counts[1], 1)
        return {
            **json.loads(output),
            "busy": (after[2] - start_counts[2]) / seconds,
            "rows_per_batch": rows / max(after[0] - start_counts[0], 1),
            "cpu_ms": 1000 * (cpu_seconds(self.process.pid) - cpu) / rows,
        }


def cpu_seconds(pid: int) -> float:
    """Returns the processor's seconds of a process and all below it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own_seconds = (int(fields[11]) + int(fields[12])) / TICKS
    return own_seconds + sum(cpu_seconds(int(child)) for child in children)


def find_port() -> int:
    """Returns a port that is free, as are the two after it: one that no client's end may have."""
    while True:
        port = random.randrange(10_000, 32_000)
        try:
            for number in range(port, port + 3):
                socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        return port


@dataclass(frozen=True)
class Usage:
    """What all processes of a server hold."""

    megabytes: float
    threads: int
    files: int


def usage_of(pid: int) -> Usage:
    """Returns what a process, and all below it, hold."""
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(
            line.split(":", 1)
            for line in (folder / "status").read_text().splitlines()
            if ":" in line
        )
        files = len(list((folder / "fd").iterdir()))
        children = (folder / f"task/{pid}/children").read_text().split()
    except OSError:
        return Usage(0.0, 0, 0)
    parts = [usage_of(int(child)) for child in children]
    kilobytes = int(status.get("VmRSS", "0 kB").split()[0])
    return Usage(
        kilobytes / 1024 + sum(part.megabytes for part in parts),
        int(status.get("Threads", "0")) + sum(part.threads for part in parts),
        files + sum(part.files for part in parts),
    )


@contextmanager
def serving(rival: Rival, python: str, *arguments: str, **variables: str) -> Iterator[Server]:
    """Starts a server, and ends it with all of its processes.

    Args:
        rival: `Rival`.
        python: string. The interpreter of the peers; ours has the running one.
        *arguments: Further ones of its script.
        **variables: Of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts, port = Path(folder) / "counts", find_port()
        environment = {
            **os.environ,
            VARIABLE: str(counts),
            "PYTHONPATH": str(FOLDER.parents[1]),
            **variables,
        }
        interpreter = python if rival.package else sys.executable
        command = [interpreter, str(FOLDER / rival.script), str(port), *rival.arguments, *arguments]
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
            if "--grpc" in arguments:
                wait_until_it_listens(port + 1)
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_it_answers(server: Server) -> None:
    """Returns when a request was answered with 200."""
    body = json.dumps(server.rival.body).encode()
    for _ in range(120):
        time.sleep(0.5)
        if fetch(server.port, server.rival.path, body)[0] == HTTPStatus.OK:
            return
        if server.process.poll() is not None:
            break
    raise TimeoutError(f"{server.rival.name} does not answer.")


def wait_until_it_listens(port: int) -> None:
    """Returns when a second port is open, too: it may come after the first."""
    for _ in range(240):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.25)
        else:
            return
    raise TimeoutError(f"Nobody listens on port {port}.")


def fetch(
    port: int, path: str, body: bytes | None = None, method: str | None = None
) -> tuple[int, bytes]:
    """Returns the status and the body of an answer; 0 if there is none."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException):
        return 0, b""
    finally:
        connection.close()


def find_python(pythons: list[str], rival: Rival) -> str | None:
    """Returns the interpreter that has a server's package; ours needs none but the running one."""
    if not rival.package:
        return sys.executable
    for python in pythons:
        call = [python, "-c", f"import {rival.package}"]
        if subprocess.run(call, capture_output=True, check=False).returncode == 0:
            return python
    return None

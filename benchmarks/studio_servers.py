"""Studio and TensorBoard with the same events, each asked for what its page asks for."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from server_processes import cpu_seconds, fetch, find_port

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.callbacks.event_file import EventFile, Scalar

OURS, PEER = "Studio", "TensorBoard"
NAME, PIXELS = "step_loss", 1088

# It starts faster where TensorFlow is not installed.
_TENSORBOARD = """
import sys
sys.modules["tensorflow"] = None
from tensorboard.main import run_main
run_main()
"""
_SECONDS = 120.0


class Picture(NamedTuple):
    """The last step of a run on the page, the number of its points, and the largest value."""

    step: int
    points: int
    most: float


class Run:
    """A run that both can read."""

    def __init__(self, folder: Path, name: str) -> None:
        self._record = RunRecord(folder / OURS / f"{name}.sqlite")
        self._events = EventFile(folder / PEER / name)

    def add(self, first: int, values: Sequence[float]) -> None:
        """Writes values from a step on."""
        now = time.time()
        self._record.log_steps((first + i, {NAME: value}) for i, value in enumerate(values))
        self._events.write(Scalar(NAME, first + i, v, now) for i, v in enumerate(values))

    def close(self) -> None:
        """Ends the run."""
        self._record.describe({"state": "finished"})
        self._record.close()
        self._events.close()


class Server:
    """A server that was just started."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.port = find_port()
        self.address = f"http://127.0.0.1:{self.port}/"
        self.begun = time.monotonic()
        ours = [sys.executable, "-m", "keras_deepseek", "studio", str(folder / OURS)]
        theirs = [sys.executable, "-c", _TENSORBOARD, "--logdir", str(folder / PEER)]
        theirs += ["--reload_interval", "1"]
        self.process = subprocess.Popen(
            [*(ours if kind == OURS else theirs), "--port", str(self.port)],
            stdout=subprocess.PIPE if kind == OURS else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        if kind == OURS:
            assert self.process.stdout is not None
            self.address = self.process.stdout.readline().removeprefix("Studio: ").strip()
        self._runs: dict[str, Any] = {}
        self._series: dict[str, Any] = {}

    def wait(self, runs: Sequence[str], step: int) -> dict[str, Picture]:
        """Asks until the picture of each run has a step."""
        ask = self._ask_ours if self.kind == OURS else self._ask_peer
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            pictures = ask(runs)
            if len(pictures) == len(runs) and all(
                picture.step >= step for picture in pictures.values()
            ):
                return pictures
            time.sleep(0.02)
        raise TimeoutError(f"{self.kind} has no step {step}.")

    def cpu_seconds(self) -> float:
        """Returns the CPU time of the server and its children."""
        return cpu_seconds(self.process.pid)

    def _ask_ours(self, runs: Sequence[str]) -> dict[str, Picture]:
        request = {
            "seen": {run: run_summary["version"] for run, run_summary in self._runs.items()},
            "series": [[run, NAME, self._version(run), PIXELS, 0] for run in runs],
            "findings_of": runs[-1],
        }
        address, _, secret = self.address.partition("#")
        body = json.dumps(request).encode()
        with urlopen(Request(f"{address}api/poll", body, {"X-Studio-Key": secret})) as answer:
            content = json.loads(answer.read())
        self._runs.update(content["runs"])
        self._series.update(content["series"])
        pictures = {}
        for run in runs:
            if points := self._series.get(f"{run}\n{NAME}"):
                most = max(points.get("most", points["y"]))
                pictures[run] = Picture(self._runs[run]["step"], len(points["y"]), most)
        return pictures

    def _version(self, run: str) -> Any:
        return self._series.get(f"{run}\n{NAME}", {}).get("version", -1)

    def _ask_peer(self, runs: Sequence[str]) -> dict[str, Picture]:
        path = "/experiment/defaultExperimentId/data/plugin/timeseries/timeSeries"
        query = urlencode({"requests": json.dumps([{"plugin": "scalars", "tag": NAME}])})
        status, body = fetch(self.port, f"{path}?{query}")
        if status != HTTPStatus.OK:
            return {}
        series = json.loads(body)[0].get("runToSeries", {})
        return {
            run: Picture(points[-1]["step"], len(points), max(point["value"] for point in points))
            for run, points in series.items()
            if run in runs and points
        }


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[Server]:
    """Starts a server, and ends it with its children."""
    server = Server(kind, folder)
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()

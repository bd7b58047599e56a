"""Reads one run record, also while a training writes it, and remembers what it has read."""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.errors import InvalidInputError

COMMANDS = ("stop", "checkpoint", "profile")
"""What the page may ask of a training."""

SILENT_SECONDS = 30.0
"""A training writes its heartbeat once a second. Silent for this long, it is taken for dead."""

_COLUMNS = 1024
_FORGET_SECONDS = 300.0


@dataclass
class Series:
    """The points of one name, by ascending step."""

    steps: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    values: np.ndarray = field(default_factory=lambda: np.empty(0))
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    """The times of the first points, as far as `RunReader.times` has read them."""


@dataclass
class VectorSeries:
    """Means of `stride` successive vectors. At `2 * _COLUMNS` means, `stride` doubles."""

    labels: list[str]
    stride: int = 1
    steps: list[int] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    last: int = -1

    def add(self, step: int, values: np.ndarray) -> None:
        """Adds the vector of one step."""
        self.last = step
        if self.counts and self.counts[-1] < self.stride and len(values) == len(self.sums[-1]):
            self.sums[-1] = self.sums[-1] + values
            self.counts[-1] += 1
            return
        if len(self.steps) >= 2 * _COLUMNS:
            self.stride *= 2
            pairs = range(0, len(self.steps) - 1, 2)
            self.sums = [self.sums[i] + self.sums[i + 1] for i in pairs]
            self.counts = [self.counts[i] + self.counts[i + 1] for i in pairs]
            self.steps = [self.steps[i] for i in pairs]
        self.steps.append(step)
        self.sums.append(values.astype(float))
        self.counts.append(1)

    def matrix(self) -> np.ndarray:
        """Returns the means, a row for each label and a column for each entry of `steps`."""
        if not self.steps:
            return np.empty((len(self.labels), 0))
        return np.stack([s / n for s, n in zip(self.sums, self.counts, strict=True)], axis=1)


class RunReader:
    """Reads one run record while a training writes it. Writes nothing to it but commands.

    Args:
        path: The SQLite file.
        clock: Function that returns the time in seconds since 1970.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.version = 0
        """Raised whenever something of the run has changed."""
        self.problem: str | None = None
        self.properties: dict[str, Any] = {}
        self.documents: dict[str, int] = {}
        self.vector_names: list[str] = []
        self.ends: dict[str, dict[str, Any]] = {}
        """For each name: the last step, the last, least and largest value, and two times."""
        self.commands: list[dict[str, Any]] = []
        self._clock = clock
        self._signature: object = None
        self._state: str | None = None
        self._series: dict[str, Series] = {}
        self._read_times: dict[str, float] = {}
        self._vectors: dict[str, VectorSeries] = {}

    # -- What has changed -----------------------------------------------------------------------

    def refresh(self) -> None:
        """Reads what has been written since the last call."""
        with self.lock:
            signature = self._read_signature()
            if signature is None or signature != self._signature:
                self.problem = None
                with self._keep_problem(), self._open() as record:
                    self._read(record)
                self._signature = signature
                self.version += 1
            elif self.state() != self._state:
                self.version += 1
            self._state = self.state()
            now = self._clock()
            for name in [
                name for name, at in self._read_times.items() if now - at > _FORGET_SECONDS
            ]:
                del self._read_times[name]
                self._series.pop(name, None)

    def _read_signature(self) -> object:
        """Returns size and time of the file and its log, or `None` if one changed just now."""
        signature = []
        for suffix in ("", "-wal"):
            try:
                entry = Path(f"{self.path}{suffix}").stat()
            except FileNotFoundError:
                signature.append((0, 0))
                continue
            if entry.st_size == 0:  # A reader leaves an empty log.
                signature.append((0, 0))
                continue
            if abs(self._clock() - entry.st_mtime) < 1:  # Another write may have the same time.
                return None
            signature.append((entry.st_size, entry.st_mtime_ns))
        return tuple(signature)

    def _open(self) -> RunRecord:
        return RunRecord(self.path, self._clock, read_only=True)

    @contextmanager
    def _keep_problem(self) -> Iterator[None]:
        """Context manager that stores an error of the file as the problem of this run."""
        try:
            yield
        except (InvalidInputError, ValueError, TypeError, KeyError) as error:
            self.problem = str(error).replace(str(self.path), self.path.name)
            self.version += 1

    def _read(self, record: RunRecord) -> None:
        with record.snapshot():
            properties = record.properties()
            if not properties:
                raise InvalidInputError(f"{self.path.name} is not a run record: it is empty.")
            if properties.get("generation") != self.properties.get("generation"):
                self._series, self._vectors, self.ends = {}, {}, {}
            self.properties = _for_browser(properties)
            for name in record.names():
                self._read_end(record, name)
            self.documents = record.documents()
            self.vector_names = record.vector_names()
            last_five = record.commands()[:-6:-1]  # The newest first.
            self.commands = [command._asdict() for command in last_five]

    def _read_end(self, record: RunRecord, name: str) -> None:
        old = self.ends.get(name)
        extent = record.extent(name, old["step"] if old else -1)
        if extent is None:
            return
        end = extent._asdict()
        if old:
            for key, choose in (("least", min), ("most", max)):
                values = (value for value in (old[key], end[key]) if value is not None)
                end[key] = choose(values, default=None)
            end.update(begin=old["begin"], end=max(old["end"], extent.end))
        self.ends[name] = end

    # -- What it holds --------------------------------------------------------------------------

    def state(self) -> str:
        """Returns running, finished, failed, stopped, lost, ended (of form 1) or unreadable."""
        if self.problem is not None:
            return "unreadable"
        state = self.properties.get("state")
        last_time = self.last_time()
        is_silent = last_time is None or self._clock() - last_time > SILENT_SECONDS
        if state is None:
            return "ended" if is_silent else "running"
        if state == "running" and (is_silent or self._has_no_process()):
            return "lost"
        return str(state)

    def _has_no_process(self) -> bool:
        pid = self.properties.get("pid")
        if not isinstance(pid, int) or self.properties.get("host") != platform.node():
            return False
        try:
            os.kill(pid, 0)  # Signal 0 sends nothing: it only looks for the process.
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def last_time(self) -> float | None:
        """Returns the time of the last sign of life, in seconds since 1970."""
        times = [end["end"] for end in self.ends.values()]
        times += [v for k in ("heartbeat", "started") if (v := self.properties.get(k)) is not None]
        return max(times, default=None)

    def begin(self) -> float | None:
        """Returns the time at which the run began, in seconds since 1970."""
        begins = [end["begin"] for end in self.ends.values()]
        return self.properties.get("started") or min(begins, default=None)

    def summary(self) -> dict[str, Any]:
        """Returns what the page shows of the run without its points."""
        with self.lock:
            return {
                "problem": self.problem,
                "state": self.state(),
                "properties": self.properties,
                "begin": self.begin(),
                "seen": self.last_time(),
                "step": max((end["step"] for end in self.ends.values()), default=None),
                "ends": {
                    name: {key: _finite(value) for key, value in end.items()}
                    for name, end in self.ends.items()
                },
                "documents": self.documents,
                "vectors": self.vector_names,
                "commands": self.commands,
            }

    def series_version(self, name: str) -> str:
        """Returns a text that changes when a name gets new points."""
        end = self.ends.get(name)
        generation = self.properties.get("generation")
        return "" if end is None else f"{generation} {end['step']} {end['last']} {end['end']};"

    def series(self, name: str) -> Series:
        """Returns all points of a name."""
        with self.lock:
            self._read_times[name] = self._clock()
            series = self._series.setdefault(name, Series())
            end = self.ends.get(name)
            if end is None or self.problem is not None:
                return series
            last = int(series.steps[-1]) if len(series.steps) else -1
            steps, values = np.empty(0, np.int64), np.empty(0)
            with self._keep_problem(), self._open() as record:
                # The last step again: validation may have come to it.
                steps, values = record.points(name, last)
            if len(steps):
                keep = int(np.searchsorted(series.steps, steps[0]))
                series.steps = np.concatenate([series.steps[:keep], steps])
                series.values = np.concatenate([series.values[:keep], values])
                series.times = series.times[:keep]
            return series

    def times(self, name: str) -> np.ndarray:
        """Returns the time of each point of `series`, in seconds since 1970."""
        with self.lock:
            series = self.series(name)
            steps = series.steps[len(series.times) :]
            if len(steps):
                record_steps, times = np.empty((2, 0))
                with self._keep_problem(), self._open() as record:
                    record_steps, times = record.times(name, int(steps[0]), int(steps[-1]))
                if len(record_steps):  # A training that resumes may just have removed some.
                    series.times = np.concatenate(
                        [series.times, np.interp(steps, record_steps, times)]
                    )
            return series.times

    def vectors(self, name: str) -> VectorSeries:
        """Returns the vectors of a name, reduced to a number of steps that fits a screen."""
        with self.lock:
            vectors = self._vectors.setdefault(name, VectorSeries([]))
            if not vectors.labels:
                document = self.document(f"vector:{name}") or {}
                vectors.labels = [str(label) for label in document.get("labels", [])]
            if name not in self.vector_names or self.problem is not None:
                return vectors
            with self._keep_problem(), self._open() as record:
                for step, vector in record.iterate_vectors(name, vectors.last):
                    vectors.add(step, vector)
            return vectors

    def document(self, name: str) -> Any:
        """Returns a document, or `None`."""
        if name not in self.documents:
            return None
        with self._keep_problem(), self._open() as record:
            return _for_browser(record.document(name))
        return None

    def ask(self, command: str) -> None:
        """Asks the training for something; it looks once a second and writes its answer.

        Raises:
            InvalidInputError: The training does not run, or the command is unknown.
        """
        if command not in COMMANDS:
            raise InvalidInputError(f"Received the command {command!r}; known: {COMMANDS}.")
        if self.state() != "running" or "state" not in self.properties:
            raise InvalidInputError("This run does not run, so nobody can answer.")
        with RunRecord(self.path, self._clock) as record:
            record.ask(command)


def _for_browser(content: Any) -> Any:
    """Returns content with texts in place of infinity and NaN, which a browser refuses."""
    return json.loads(json.dumps(content), parse_constant=str)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value

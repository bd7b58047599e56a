"""Sends the requests of a `RequestLog` again, and compares the answers."""

import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError
from keras_deepseek.inference.monitoring.monitored_engine import AnsweringEngine
from keras_deepseek.inference.monitoring.request_log import decode_array

_IN_FLIGHT = 32
"""Requests that wait at a time, so that they share batches as they would in service."""


@dataclass(frozen=True)
class ReplayReport:
    """How the answers compare with those that were written down.

    Args:
        requests: integer. Those that had been answered with outputs, and were sent again.
        equal: integer. Answers equal in every bit.
        close: integer. Others within the tolerance.
        different: integer. Answers beyond it, or of another shape or other names.
        failed: integer. Requests that were answered with an error now.
        largest_difference: float. Of one value of an answer, over the largest value of its output.
        first: string. The first that differs or fails, in words. Empty where there is none.
        unreadable: integer. Lines that are cut off, as by a full disk or a process that was killed:
            they were passed over. Defaults to `0`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_deepseek.inference import ServingEngine
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> with ServingEngine(model, log_requests="requests.jsonl", sample=1) as engine:
    ...     _ = engine.predict(np.ones((1, 4), "float32"))
    >>> report = replay_requests(ServingEngine(model), "requests.jsonl")
    >>> report.requests, report.passed
    (1, True)
    """

    requests: int
    equal: int
    close: int
    different: int
    failed: int
    largest_difference: float
    first: str
    unreadable: int = 0

    @property
    def passed(self) -> bool:
        """Whether no answer differs and none failed."""
        return self.different == self.failed == 0

    def __str__(self) -> str:
        text = (
            f"{self.requests} requests: {self.equal} answers equal, {self.close} close, "
            f"{self.different} different, {self.failed} failed; "
            f"largest difference {self.largest_difference:.2g}"
        )
        if self.unreadable:
            text += f"; lines that could not be read: {self.unreadable}"
        return f"{text}. First: {self.first}" if self.first else text


def replay_requests(
    engine: AnsweringEngine,
    path: str | os.PathLike[str],
    *,
    model: str | None = None,
    tolerance: float = 1e-4,
) -> ReplayReport:
    """Sends the requests of a file again, and compares the answers with those in it.

    They go to the version that a request without one goes to, whichever answered then: so a new
    version is compared with the one before it. Requests that had failed are passed over, and so are
    lines that are cut off, which are counted.

    Args:
        engine: `ServingEngine`. It is started.
        path: The path of the file, as `log_requests` named it.
        model: string. The model that answers all of them. Defaults to `None`: the one of the name
            that stands in the file.
        tolerance: float. How far a value may be off, as a part of the largest of its output.
            Defaults to `0.0001`.

    Raises:
        InvalidInputError: The file can't be read, a line of it is none of a request log, or it
            holds no request with its answer.
    """
    engine.start()
    tally = _Tally(tolerance)
    waiting: deque[tuple[int, dict[str, Array], Any]] = deque()
    for number, entry in _read(Path(path)):
        if entry is None:
            tally.unreadable += 1
            continue
        try:
            answer = engine.submit(entry["inputs"], model=model or entry["model"])
        except KerasDeepSeekError as error:
            tally.fail(number, error)
            continue
        waiting.append((number, entry["outputs"], answer))
        if len(waiting) >= _IN_FLIGHT:
            tally.settle(*waiting.popleft())
    for each in waiting:
        tally.settle(*each)
    report = tally.report()
    if not report.requests:
        found = f", and {report.unreadable} lines that can not be read" if report.unreadable else ""
        raise InvalidInputError(
            f"{str(path)!r} holds no request with its answer{found}. Expected a file that "
            "`log_requests` named."
        )
    return report


class _Tally:
    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._equal = self._close = self._different = self._failed = 0
        self._largest = 0.0
        self._first = ""
        self.unreadable = 0

    def fail(self, number: int, error: BaseException) -> None:
        self._failed += 1
        self._first = self._first or f"line {number} failed with {type(error).__name__}: {error}"

    def settle(self, number: int, expected: dict[str, Array], answer: Any) -> None:
        try:
            outputs = answer.result()
        except Exception as error:  # noqa: BLE001 - Whatever the model raises: it is counted.
            self.fail(number, error)
            return
        problem, difference = _compare(outputs, expected)
        self._largest = max(self._largest, difference)
        if problem or difference > self._tolerance:
            self._different += 1
            text = problem or f"an output is off by {difference:.2g} of its largest value"
            self._first = self._first or f"line {number}: {text}"
        elif all(_is_equal(outputs[name], array) for name, array in expected.items()):
            self._equal += 1
        else:
            self._close += 1

    def report(self) -> ReplayReport:
        counts = (self._equal, self._close, self._different, self._failed)
        return ReplayReport(sum(counts), *counts, self._largest, self._first, self.unreadable)


def _is_equal(new: Array, old: Array) -> bool:
    """Whether two arrays of one dtype and shape are equal in every bit."""
    if old.dtype.kind == "O":  # Its bytes are addresses.
        return bool(new.tolist() == old.tolist())
    return new.tobytes() == old.tobytes()


def _compare(outputs: dict[str, Array], expected: dict[str, Array]) -> tuple[str, float]:
    """Returns what can't be compared, in words, and the largest difference."""
    if outputs.keys() != expected.keys():
        return f"the outputs are {sorted(outputs)}; they were {sorted(expected)}", 0.0
    largest = 0.0
    for name, old in expected.items():
        new = outputs[name]
        if new.shape != old.shape or new.dtype != old.dtype:
            now, then = f"{new.dtype} {new.shape}", f"{old.dtype} {old.shape}"
            return f"output {name!r} is {now}; it was {then}", largest
        if old.dtype.kind in "OSUbiu":  # Another class is not a small difference.
            if new.tolist() != old.tolist():
                return f"output {name!r} is another", largest
            continue
        a, b = new.astype("float64"), old.astype("float64")
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if same.all():
            continue
        if not (np.isfinite(a) & np.isfinite(b))[~same].all():
            return f"output {name!r} is finite where it was not, or the other way", largest
        scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0)) or 1.0
        largest = max(largest, float(np.abs(a - b)[~same].max()) / scale)
    return "", largest


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the number of each line with outputs, and what it holds; `None` if it is cut off."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    content = json.loads(line)
                except ValueError:
                    yield number, None
                    continue
                entry = _read_entry(content, f"Line {number} of {str(path)!r}")
                if entry is not None:
                    yield number, entry
    except OSError as error:
        raise InvalidInputError(f"Can't read the requests of {str(path)!r}: {error}.") from error


def _read_entry(content: Any, where: str) -> dict[str, Any] | None:
    """Returns a request and its outputs, or `None` if it had failed."""
    try:
        inputs, outputs = content["inputs"], content.get("outputs")
        if outputs is None:
            return None
        return {
            "inputs": {name: decode_array(array) for name, array in inputs.items()},
            "outputs": {name: decode_array(array) for name, array in outputs.items()},
            "model": str(content["model"]),
        }
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(f"{where} is none of a request log.") from error

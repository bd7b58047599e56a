"""Checks on a GPU what the tests can't on a CPU, on each installed backend.

    python gpu_tests/run.py

It shows each check as it ends, goes on where one fails, and prints a report for `docs/hardware.md`.
Its exit code is 1 where a check failed; without a GPU it says so and ends with 0. In a notebook:
`!python gpu_tests/run.py`.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gpu_tests.checks import CHECKS
from gpu_tests.child import MARK
from gpu_tests.report import Backend, Result, write_report

BACKENDS = ("torch", "tensorflow", "jax")
"""Those that compile the least come first, and leave their time to the others."""

START_SECONDS = 120
"""A framework that takes longer to load has failed."""


def main() -> int:
    """Runs the checks that the arguments ask for, and returns the exit code."""
    arguments = _parse()
    start = time.monotonic()
    names = arguments.backend or [name for name in BACKENDS if importlib.util.find_spec(name)]
    backends = []
    for position, name in enumerate(names):
        seconds_left = 60 * arguments.minutes - (time.monotonic() - start)
        deadline = time.monotonic() + seconds_left / (len(names) - position)
        backends.append(_run_backend(Backend(name), arguments, deadline))
    if not names:
        print("None of TensorFlow, JAX and PyTorch is installed.")
    without = [backend for backend in backends if backend.no_device]
    for backend in without:
        print(f"{backend.name}: no {arguments.device.upper()}: {backend.no_device}")
    if len(without) == len(backends):
        print(f"no {arguments.device.upper()}: nothing was checked.")
        return 0
    print(f"\n{write_report(backends, arguments.device, time.monotonic() - start)}")
    return int(any(backend.count("FAILED") for backend in backends))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS, help="one of several (default: installed)"
    )
    parser.add_argument(
        "--check", action="append", choices=CHECKS, help="one of several (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="for all backends together (default: 10)"
    )
    # For those who change a check: whether it runs, on a CPU, and whether it can fail.
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help=argparse.SUPPRESS)
    parser.add_argument("--fault", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_backend(backend: Backend, arguments: argparse.Namespace, deadline: float) -> Backend:
    """Runs the checks of one backend, in a new process behind each that hung or crashed."""
    pending = list(arguments.check or CHECKS)
    while pending and not backend.no_device:
        if time.monotonic() > deadline:
            for check in pending:
                _add(backend, Result(check, "FAILED", 0, "no time was left: give more --minutes"))
            break
        with _started(backend.name, pending, arguments) as (messages, tail):
            _follow(backend, pending, deadline, messages, tail)
    return backend


def _follow(
    backend: Backend,
    pending: list[str],
    deadline: float,
    messages: "queue.Queue[dict[str, Any]]",
    tail: deque[str],
) -> None:
    """Takes the messages of one process, until it ends or a check takes too long.

    Checks that have begun are removed from `pending`.
    """
    check, begun = "", time.monotonic()
    while True:
        limit = CHECKS[check].seconds if check else START_SECONDS
        seconds_left = max(0.0, min(begun + limit, deadline) - time.monotonic())
        try:
            message = messages.get(timeout=seconds_left)
        except queue.Empty:
            why = "ended: it takes too long or hangs, or --minutes are too few"
            message = {"event": "exit", "why": why}
        seconds = time.monotonic() - begun
        match message["event"]:
            case "no device":
                backend.no_device = message["why"]
                return
            case "device":
                backend.facts = message["facts"]
            case "begin":
                check, begun = message["check"], time.monotonic()
                pending.remove(check)
                tail.clear()
            case "end":
                _add(backend, Result(check, message["result"], seconds, message["text"]), tail)
                check, begun = "", time.monotonic()
            case "exit":
                if check or pending:
                    name = check or "start"
                    _add(backend, Result(name, "FAILED", seconds, message["why"]), tail)
                if not check:  # It has not even begun one: nor would the next process.
                    pending.clear()
                return


def _add(backend: Backend, result: Result, tail: Iterable[str] = ()) -> None:
    backend.results.append(result)
    line = f"{backend.name:10} {result.check:15} {result.result:7} {result.seconds:6.1f} s"
    print(f"{line}  {result.text}", flush=True)
    if result.result == "FAILED":
        print("".join(f"    {line}\n" for line in tail), end="", flush=True)


@contextlib.contextmanager
def _started(
    name: str, checks: list[str], arguments: argparse.Namespace
) -> Iterator[tuple["queue.Queue[dict[str, Any]]", deque[str]]]:
    """Starts a process of a backend; gives its messages, and its last other lines."""
    request = {"checks": checks, "device": arguments.device, "fault": arguments.fault}
    process = subprocess.Popen(
        [sys.executable, "-m", "gpu_tests.child", json.dumps(request)],
        env=_environment(name, arguments.device),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # So that its own processes are ended with it.
    )
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    tail: deque[str] = deque(maxlen=20)

    def read() -> None:
        for line in process.stdout or ():
            if line.startswith(MARK):
                messages.put(json.loads(line.removeprefix(MARK)))
            else:
                tail.append(line.rstrip())
        why = f"its process ended with {process.wait()}: {' '.join(list(tail)[-3:])}"
        messages.put({"event": "exit", "why": why})

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield messages, tail
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(timeout=10)


def _environment(name: str, device: str) -> dict[str, str]:
    """Returns the variables of a backend's process."""
    added = {
        "KERAS_BACKEND": name,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        # Room on the GPU for ONNX Runtime, TensorRT and the processes of an export.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # The last words of a process that crashes.
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    if device == "cpu":
        added |= {
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
    return os.environ | added


if __name__ == "__main__":
    sys.exit(main())

"""Starts the processes of an export's other routes by a fork of one that has imported all it needs.

Loading a framework takes most of the time of a cell. What runs in the process is what
`keras_deepseek.deploy.child` runs, and each job has a process of its own as ever.
"""

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.errors import ExportError
from keras_deepseek.deploy import child, routes

_NEEDED = {
    "tensorflow": ("tensorflow", "tf2onnx"),
    "jax": ("jax", "jax2onnx", "tensorflow"),
    "torch": ("torch", "torch.onnx", "onnxscript"),
}
_ALWAYS = (
    "keras",
    "onnx",
    "onnxruntime",
    "onnxslim",
    "keras_deepseek.backend.keras_file",
    "keras_deepseek.deploy.custom_objects",
    "keras_deepseek.deploy.registry",
    "integration_tests.export_matrix.custom_layers",
)


@contextlib.contextmanager
def warm_children() -> Iterator[None]:
    """Has the Exporter's other processes be forked, as long as it is open."""
    processes: dict[str, subprocess.Popen[str]] = {}

    def run(work: Path, backend_name: str, _: Callable[[str], None]) -> None:
        if backend_name not in processes:
            processes[backend_name] = _start(backend_name)
        code = _ask(processes[backend_name], str(work))
        if code:
            said = (work / "stderr.txt").read_text(encoding="utf-8", errors="replace")
            last_lines = "\n".join(said.strip().splitlines()[-5:])
            raise ExportError(f"the process ended with code {code}: {last_lines}")

    original = routes._run_child
    routes._run_child = run
    try:
        yield
    finally:
        routes._run_child = original
        for process in processes.values():
            process.communicate()  # Its input ends, and so does it.


def _start(backend_name: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend_name,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "integration_tests.export_matrix.warm_children"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _ask(process: Any, work: str) -> int:
    process.stdin.write(f"{work}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def main() -> None:
    """Forks a process for each folder that is named in a line, and answers with its exit code."""
    for name in (*_NEEDED[os.environ["KERAS_BACKEND"]], *_ALWAYS):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # What is printed is no answer.
    for line in sys.stdin:
        forked = os.fork()
        if not forked:
            _work(Path(line.strip()))
        _, status = os.waitpid(forked, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _work(work: Path) -> None:
    """Does what the process of a route does, and ends."""
    code = 1
    tempfile.tempdir = str(work)  # Nothing that is to be removed at its end would be.
    try:
        with (work / "stderr.txt").open("w", encoding="utf-8") as said:
            os.dup2(said.fileno(), sys.stderr.fileno())
            child.main(work)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()

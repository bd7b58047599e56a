"""Child processes that run another backend, shared by exports since they start slowly."""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from keras_deepseek.deploy.routes.child import BEGUN, DONE
from keras_deepseek.deploy.stage_display import CHILD_MARK
from keras_deepseek.errors import ExportError

Say = Callable[[str], None]
"""A function that shows a stage as it begins."""

_NUM_ERROR_LINES = 5  # The last ones of a failed process, which the error message quotes.


class ChildProcess:
    """A child process that runs another backend.

    Its first job starts it, and the next job restarts it if it has ended. It ends with this
    process, after two minutes without a job, or when a job is interrupted. It is restarted if a
    source file that it has imported was changed.
    """

    def __init__(self, backend_name: str) -> None:
        self._backend_name = backend_name
        self._process: subprocess.Popen[str] | None = None
        self._sources: dict[str, int] = {}
        self._lock = threading.Lock()

    def run(self, work: Path, say: Say) -> None:
        """Runs the export job in a folder, and reports each stage to `say`.

        `child.py` describes the files.
        """
        temporary = work / "temporary"  # The files of a killed job are removed with `work`.
        temporary.mkdir()
        process = {
            "path": [path or str(Path.cwd()) for path in sys.path],
            "folder": str(Path.cwd()),
            "temporary": str(temporary.resolve()),
        }
        (work / "process.json").write_text(json.dumps(process), encoding="utf-8")
        with self._lock:
            if self._have_sources_changed():
                self.close()
            for _ in range(2):  # Its idle timeout may be over just now.
                if self._try(work, say):
                    break
            result = json.loads((work / "result.json").read_text(encoding="utf-8"))
            self._sources = result["sources"]

    def close(self) -> None:
        """Ends the child process if it is running."""
        process, self._process = self._process, None
        if process is not None:
            with process:  # It ends when its input is closed.
                pass

    def _try(self, work: Path, say: Say) -> bool:
        """Runs an export job; returns `False` if the child process ended before the job began."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start(work)
        process, has_begun = self._process, False
        try:
            try:
                print(work.resolve(), file=process.stdin, flush=True)
            except BrokenPipeError:
                self.close()
                return False
            for line in process.stdout or ():
                if not line.startswith(CHILD_MARK):
                    continue
                stage = line.removeprefix(CHILD_MARK).strip()
                if stage == DONE:
                    return True
                if stage == BEGUN:
                    has_begun = True
                else:
                    say(stage)
        except BaseException:
            process.kill()
            self.close()
            raise
        self.close()
        if not has_begun and process.returncode == 0:  # Its idle timeout was over.
            return False
        errors = work / "errors.txt"
        error_text = errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else ""
        last_lines = "\n".join(error_text.strip().splitlines()[-_NUM_ERROR_LINES:])
        raise ExportError(f"the process ended with code {process.returncode}: {last_lines}")

    def _start(self, work: Path) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "KERAS_BACKEND": self._backend_name,
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        with (work / "errors.txt").open("w", encoding="utf-8") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "keras_deepseek.deploy.routes.child"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def _have_sources_changed(self) -> bool:
        return any(
            source.exists() and source.stat().st_mtime_ns != changed
            for source, changed in ((Path(name), time) for name, time in self._sources.items())
        )


_processes: dict[str, ChildProcess] = {}


def run_in_child(work: Path, backend_name: str, say: Say) -> None:
    """Runs an export job in the shared child process of a backend; see `ChildProcess.run`."""
    _processes.setdefault(backend_name, ChildProcess(backend_name)).run(work, say)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_processes.clear)  # They belong to the parent.


@atexit.register
def close_all() -> None:
    """Ends every child process. The next job starts a new one."""
    for process in _processes.values():
        process.close()

"""A process that says in its first line where it serves, for the tests that start one."""

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def announced_process(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str], seconds: float
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Yields a process and its first line; it is ended on the way out, or in time."""
    with subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(seconds, process.kill)
        watchdog.start()
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()
            watchdog.cancel()

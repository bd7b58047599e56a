"""The launcher as users start it, with scripts that load no framework."""

import os
import re
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEADLINE = 60
"""Seconds. By then a test that hangs fails."""


class Launched:
    """A launcher that runs, and what it has written so far."""

    def __init__(self, script: Path, options: tuple[str, ...], arguments: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keras_deepseek.cli", "launch", *options, script, *arguments],
            env={"KERAS_BACKEND": "torch", **os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._pidfds: list[int] = []

    def read_lines(self, count: int) -> list[str]:
        """Returns so many lines of stdout, sorted: the order of the ranks is anyone's guess."""
        assert self.process.stdout is not None
        return sorted(self.process.stdout.readline().decode().rstrip() for _ in range(count))

    def finish(self) -> tuple[int, str, str]:
        """Returns the exit code and the rest of stdout and stderr, without the first line of it."""
        out, error = self.process.communicate(timeout=DEADLINE)
        first = re.compile(r"keras-deepseek launch: \d+ process(es)? on \w+, by [^\n]*\n")
        return self.process.returncode, out.decode(), first.sub("", error.decode(), count=1)

    def watch(self, pids: list[int]) -> None:
        """Keeps hold of processes, whose numbers may become those of others."""
        self._pidfds += [os.pidfd_open(pid) for pid in pids]

    def all_have_ended(self) -> bool:
        """Waits until each process that is watched has ended, or too long."""
        until = time.monotonic() + DEADLINE
        return all(
            select.select([pidfd], [], [], max(0.0, until - time.monotonic()))[0]
            for pidfd in self._pidfds
        )

    def close(self) -> None:
        """Lets go of everything."""
        self.process.kill()
        self.process.communicate()
        for pidfd in self._pidfds:
            os.close(pidfd)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Returns a function that launches a script: its text, options, and its own arguments."""
    started = []

    def start(text: str, *options: str, arguments: tuple[str, ...] = ()) -> Launched:
        script = tmp_path / "script.py"
        head = "import os, signal, subprocess, sys, time\nrank = int(os.environ['RANK'])\n"
        script.write_text(head + textwrap.dedent(text), encoding="utf-8")
        started.append(Launched(script, options, arguments))
        return started[-1]

    yield start
    for launched in started:
        launched.close()

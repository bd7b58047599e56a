"""The watchdog process, which kills the process groups that a killed launcher left.

`die_with_parent` ends the processes themselves, on Linux only. The watchdog also ends their
children, such as the workers of a data loader, and works on every POSIX system: its stdin is closed
when the launcher ends, in whatever way.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable


class Watchdog:
    """Context manager that runs the watchdog process, which kills the groups passed to `add`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def add(self, group: int) -> None:
        """Adds a process group that the watchdog kills if the launcher ends."""
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Removes a process group, because its number may soon be another group's."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        # If the watchdog was killed, the processes go on without it.
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.write(line.encode())


def watch(lines: Iterable[str]) -> set[int]:
    """Reads lines until the pipe closes; returns the process groups that are left.

    A line is `+GROUP` for a group that was added, or `-GROUP` for one that was removed.
    """
    groups: set[int] = set()
    for line in lines:
        if line.endswith("\n"):  # The launcher may have died while it wrote.
            change = groups.add if line.startswith("+") else groups.discard
            change(int(line[1:]))
    return groups


def main() -> None:
    """Reads stdin until it closes, and kills the process groups that are left."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # The launcher handles them.
    for group in watch(sys.stdin):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()

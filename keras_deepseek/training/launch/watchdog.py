"""What outlives the launcher by a moment: it ends the process groups that a killed one left.

`die_with_parent` ends the processes themselves, on Linux. This ends theirs too, such as the workers
of a data loader, and on every POSIX system: its stdin ends when the launcher does, however that
came about.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from types import TracebackType


class Watchdog:
    """A process that is told of each process group, for as long as the block lasts."""

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def add(self, group: int) -> None:
        """Takes charge of a process group.

        Args:
            group: integer. Its id.
        """
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Forgets a process group, whose number may soon be another's.

        Args:
            group: integer. Its id.
        """
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        # Where somebody has killed the watchdog, the processes go on without.
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.write(line.encode())


def watch(lines: Iterable[str]) -> set[int]:
    """Returns the groups that are left when the lines end.

    Args:
        lines: `+GROUP` for each that comes, `-GROUP` for each that has gone.
    """
    groups: set[int] = set()
    for line in lines:
        if line.endswith("\n"):  # Else the launcher died while it wrote.
            change = groups.add if line.startswith("+") else groups.discard
            change(int(line[1:]))
    return groups


def main() -> None:
    """Watches stdin and ends what is left."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Those are for the launcher to heed.
    for group in watch(sys.stdin):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()

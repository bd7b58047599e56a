"""How a process of a job failed."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """The first process of a job that did not end with exit code 0.

    Args:
        rank: integer.
        status: integer. Its exit code, or a signal's number below zero.
        last_errors: list of strings. Its last lines on stderr.
    """

    rank: int
    status: int
    last_errors: Sequence[str]

    @property
    def exit_code(self) -> int:
        """What the launcher ends with: as shells have it, 128 and the signal's number."""
        return self.status if self.status >= 0 else 128 - self.status

    def describe(self) -> str:
        """Returns which process failed, how, and what it had to say."""
        if self.status >= 0:
            how = f"with exit code {self.status}"
        else:
            how = f"by {signal_name(-self.status)}"
        if not self.last_errors:
            return f"rank {self.rank} ended {how}, and wrote nothing to stderr."
        lines = "\n".join(f"    {line}" for line in self.last_errors)
        return f"rank {self.rank} ended {how}. Its last lines on stderr:\n{lines}"


def signal_name(number: int) -> str:
    """Returns `SIGTERM` for 15.

    Args:
        number: integer.
    """
    try:
        return signal.Signals(number).name
    except ValueError:  # One of the many that Linux has for real-time use.
        return f"signal {number}"

"""The record of a process of a job that failed."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """The first process of a job that ended with an exit code other than 0.

    `status` is the exit code, or the negative number of a signal; `last_errors` are its last lines
    on stderr.
    """

    rank: int
    status: int
    last_errors: Sequence[str]

    @property
    def exit_code(self) -> int:
        """The exit code of the launcher, which is 128 plus the number for a signal."""
        return self.status if self.status >= 0 else 128 - self.status

    def describe(self) -> str:
        """Describes the failure: the rank, how it ended, and its last errors."""
        if self.status >= 0:
            how = f"with exit code {self.status}"
        else:
            how = f"by {signal_name(-self.status)}"
        if not self.last_errors:
            return f"rank {self.rank} ended {how}, and wrote nothing to stderr."
        lines = "\n".join(f"    {line}" for line in self.last_errors)
        return f"rank {self.rank} ended {how}. Its last lines on stderr:\n{lines}"


def signal_name(number: int) -> str:
    """Returns the name of a signal, such as `SIGTERM` for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:  # One of Linux's real-time signals, which have no names.
        return f"signal {number}"

"""Becomes another program that dies when the launcher does: `PARENT_PID PROGRAM ARGUMENTS...`.

Run as a script between the launcher and each process. What it asks of the kernel outlives `exec`.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Asks for SIGKILL at the parent's death, where there is Linux, and becomes the program.

    Args:
        arguments: The parent's process id, and the program with its arguments.
    """
    parent, *command = arguments
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # A traceback of this file helps nobody.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent):  # It died before the kernel was asked.
        os.kill(os.getpid(), signal.SIGKILL)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A wrapper program that ends another program when its parent process ends.

It runs between the launcher and each process, and becomes the program by `exec`, which keeps the
setting.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # An option of Linux's `prctl`.


def main(arguments: Sequence[str]) -> None:
    """Becomes the program, after asking Linux to kill it when its parent ends.

    The arguments are the parent's process ID, and the program with its arguments.
    """
    parent, *command = arguments
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback of this file.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent):  # The parent died before the call above.
        os.kill(os.getpid(), signal.SIGKILL)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Two paths that change places in one step, where the system can do that.

So there is no moment at which neither stands, whenever the process is killed.
"""

import ctypes
import os
import sys
from pathlib import Path

_RELATIVE_TO_HERE = -100  # AT_FDCWD
_RENAME_EXCHANGE = 2


def exchange(first: Path, second: Path) -> bool:
    """Lets two paths that exist change places, and returns whether it was done.

    Linux does it, on most of its file systems. Where it is not done, nothing is changed.

    Args:
        first: A file or a folder.
        second: Another, on the same file system.
    """
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:  # A C library of before 2018.
        return False
    here = _RELATIVE_TO_HERE
    result: int = rename(here, os.fsencode(first), here, os.fsencode(second), _RENAME_EXCHANGE)
    return result == 0

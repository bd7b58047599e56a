"""Two paths that change places in one step, where the system can do that.

So there is no moment at which neither stands, whenever the process is killed.
"""

import ctypes
import os
import shutil
import sys
import tempfile
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


def replace_folder(folder: Path, target: Path) -> None:
    """Puts a folder at a path, in one step where that can be done, and removes the old one.

    Args:
        folder: A folder beside `target`, such as one of `staging_folder(target)`.
        target: Where it will stand. There may be a folder or nothing.
    """
    if not target.is_dir():
        folder.rename(target)
        return
    if exchange(folder, target):
        shutil.rmtree(folder, ignore_errors=True)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Waits until what was written to a file or a folder is on the disk.

    Args:
        path: The file or the folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

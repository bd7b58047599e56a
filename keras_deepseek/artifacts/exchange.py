"""Atomic exchange of two files or folders, where the operating system supports it.

So a process that is killed never leaves a moment in which neither path exists.
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
    """Swaps two existing files or folders of one file system atomically.

    Returns False and changes nothing if the system can't.
    """
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:  # The C library is older than 2018.
        return False
    here = _RELATIVE_TO_HERE
    result: int = rename(here, os.fsencode(first), here, os.fsencode(second), _RENAME_EXCHANGE)
    return result == 0


def replace_folder(folder: Path, target: Path) -> None:
    """Moves a folder to a path of the same file system, atomically if possible.

    An old folder there is removed.
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
    """Blocks until the content of a file or folder is written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

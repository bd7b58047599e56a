"""Hidden staging folders, in which files are completed before they move to their final paths.

Such a folder is beside the path, and is locked as long as its process lives. The next process that
writes to the same path removes the folder of a killed one. Temporary folders work in the same way.
Two paths are exchanged atomically where the operating system can.
"""

import contextlib
import ctypes
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_deepseek.errors import BundleError

try:
    import fcntl
except ImportError:  # Windows has no such locks: the folders of killed processes stay there.
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".partial"
_LONGEST_WAIT = 0.2
"""Seconds. A process that locks the folder only to clean up is done by then."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def staging_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager that yields an empty folder beside `path` for new content, and removes it."""
    target = Path(path)
    missing = [parent for parent in target.parents if not parent.exists()]
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = _make_folder(stack, target)
        except OSError as error:
            file = next(filter(os.path.isfile, target.parents), None)
            reason = f"{str(file)!r} is a file" if file else error.strerror
            raise BundleError(
                f"Nothing can be written at {str(target)!r}: {reason}. Name another place."
            ) from error
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # Parents that are not empty stay.
                for parent in missing:
                    parent.rmdir()


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Context manager that yields an empty folder that no other user can read, and removes it.

    If the process is killed, the next process that asks for a folder of this name removes it.
    """
    target = Path(tempfile.gettempdir(), name)
    with contextlib.ExitStack() as stack:
        try:
            folder = _make_folder(stack, target)
        except OSError as error:
            raise BundleError(
                f"Nothing can be written in {str(target.parent)!r}: {error.strerror}. "
                "Set TMPDIR to another place."
            ) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _make_folder(stack: contextlib.ExitStack, target: Path) -> Path:
    """Creates and returns a folder beside `target`, locked until the exit stack is closed."""
    # The parent's lock protects a new folder that is not locked yet.
    with contextlib.ExitStack() as briefly:
        if _lock_briefly(briefly, target.parent):
            _remove_left(target)
        folder = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent)
        )
        _lock(stack, folder)
    return folder


def _remove_left(target: Path) -> None:
    prefix = f".{target.name}."
    for folder in list(target.parent.glob(f"{glob.escape(prefix)}*{_SUFFIX}")):
        middle = folder.name.removeprefix(prefix).removesuffix(_SUFFIX)
        if "." not in middle and folder.is_dir():  # With a dot, it is for another name.
            with contextlib.ExitStack() as briefly:
                if _lock(briefly, folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _lock_briefly(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Waits a short time for the lock of a folder. Returns True if it was acquired.

    Without the lock the caller can go on if the folder is itself a staging folder, and so locked:
    no other process removes folders from it.
    """
    deadline = time.monotonic() + (_LONGEST_WAIT if fcntl else 0.0)
    while not _lock(stack, folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LONGEST_WAIT / 10)
    return True


def _lock(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Locks a folder until the exit stack is closed or the process ends, if no other has it."""
    if fcntl is None:
        return False
    with contextlib.suppress(OSError):  # Another process has it, or there are no locks.
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def exchange(first: Path, second: Path) -> bool:
    """Swaps two existing files or folders of one file system atomically.

    A process that is killed then leaves no moment in which neither path exists. Returns False and
    changes nothing if the system can't.
    """
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:  # The C library is older than 2018.
        return False
    paths = _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second)
    return bool(rename(*paths, _RENAME_EXCHANGE) == 0)


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
    if os.name == "nt" and path.is_dir():  # Windows opens no folders.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A hidden folder beside the place of what is written, so that what stands there is whole.

It is locked for as long as its process lives. One that a killed process left is removed by the next
that writes at the same place. A folder for what is needed for a while is made in the same way.
"""

import contextlib
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_deepseek.errors import BundleError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there nothing that was left is removed.
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".partial"
_LONGEST_WAIT = 0.2
"""Seconds. Who has locked a folder before has then long looked at what is in it."""


@contextmanager
def staging_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder beside `path`, for what is to stand there; removed on the way out.

    Args:
        path: Where the finished file or folder will stand. Its parents are made.

    Raises:
        BundleError: Nothing can be written there.
    """
    target = Path(path)
    missing = [parent for parent in target.parents if not parent.exists()]
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = _make_folder(stack, target)
        except OSError as error:
            raise BundleError(
                f"Nothing can be written at {str(target)!r}: {error.strerror}. Name another place."
            ) from error
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # Those that have been filled stay.
                for parent in missing:
                    parent.rmdir()


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Yields an empty folder that nobody else can read; removed on the way out.

    Unlike one of `tempfile`, it does not stay where its process is killed: the next process that
    asks for one of the same name removes it.

    Args:
        name: string. What it is for, as in `"keras_deepseek_export"`.

    Raises:
        BundleError: Nothing can be written where temporary files go.
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
    """Returns a new folder beside `target`, locked until the stack is closed."""
    # The parent's lock keeps others from a folder that is made and not yet locked.
    with contextlib.ExitStack() as briefly:
        if _lock_briefly(briefly, target.parent):
            _remove_left(target)
        folder = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent)
        )
        _lock(stack, folder)
    return folder


def _remove_left(target: Path) -> None:
    """Removes the folders for `target` whose processes are gone."""
    prefix = f".{target.name}."
    for folder in list(target.parent.glob(f"{glob.escape(prefix)}*{_SUFFIX}")):
        middle = folder.name.removeprefix(prefix).removesuffix(_SUFFIX)
        if "." not in middle and folder.is_dir():  # With a dot, it is for another name.
            with contextlib.ExitStack() as briefly:
                if _lock(briefly, folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _lock_briefly(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Returns whether a folder is now locked; others who make one in it are waited for.

    It may be such a folder itself, which is locked for long, and which nobody else removes from.
    """
    deadline = time.monotonic() + (_LONGEST_WAIT if fcntl else 0.0)
    while not _lock(stack, folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LONGEST_WAIT / 10)
    return True


def _lock(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Returns whether a folder is now locked, until the stack is closed or the process ends."""
    if fcntl is None:
        return False
    with contextlib.suppress(OSError):  # Another has it, or the file system has no locks.
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False

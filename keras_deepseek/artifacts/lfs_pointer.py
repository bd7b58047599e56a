"""Pointers of Git LFS, which stand for large files where a repository was cloned without it."""

from pathlib import Path

from keras_deepseek.errors import CheckpointError

_BEGIN = b"version https://git-lfs.github.com/spec/"


def check_not_pointer(path: Path, content: bytes) -> None:
    """Says where a file is a pointer to what was not fetched.

    Args:
        path: `pathlib.Path`. The file.
        content: bytes. Its beginning, or all of it.

    Raises:
        CheckpointError: It is one.
    """
    if content.startswith(_BEGIN):
        raise CheckpointError(
            f"{path.name!r} is a pointer of Git LFS, and the file itself is not there. Fetch it: "
            f"`git lfs pull` in {str(path.parent)!r}."
        )

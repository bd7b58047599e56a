"""Detection of Git LFS pointers, which replace large files in a clone without Git LFS."""

from pathlib import Path

from keras_deepseek.errors import CheckpointError, KerasDeepSeekError

_BEGIN = b"version https://git-lfs.github.com/spec/"


def check_not_pointer(
    path: Path, content: bytes, error: type[KerasDeepSeekError] = CheckpointError
) -> None:
    """Raises an error if a file is a pointer of Git LFS.

    `content` is the beginning of the file, or all of it.
    """
    if content.startswith(_BEGIN):
        raise error(
            f"{path.name!r} is a pointer of Git LFS: the file itself was not downloaded. Run "
            f"`git lfs pull` in {str(path.parent)!r}."
        )

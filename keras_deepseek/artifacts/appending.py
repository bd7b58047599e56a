"""Appends bytes to a file completely or not at all."""

import io
import os


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Appends data to an unbuffered file; if it does not fit, the file stays as it was.

    Args:
        file: A file opened with `open(path, "ab", buffering=0)`.
        data: The bytes.

    Raises:
        OSError: Not all of it could be written, as on a full disk.
    """
    start = os.fstat(file.fileno()).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError as error:
        file.truncate(start)
        reason = (
            f"{error.strerror}, so that the logs end here. Free some space, or name another file"
        )
        raise OSError(error.errno, reason, os.fspath(file.name)) from error

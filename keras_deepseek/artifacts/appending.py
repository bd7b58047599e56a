"""Appending of bytes to a file, completely or not at all."""

import io
import os


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Appends data to a file opened with `buffering=0`; restores its size if not all fits."""
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

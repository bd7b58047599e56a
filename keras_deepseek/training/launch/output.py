"""The launcher's own standard output and standard error."""

import os
import sys
from typing import BinaryIO

PROGRAM = "keras-deepseek launch"


class Output:
    """Writes lines of the processes and of the launcher to stdout and stderr.

    If a log can't be written, because its reader has ended or the disk is full, the training goes
    on and the output is dropped.
    """

    def write_out(self, data: bytes) -> None:
        """Writes bytes to stdout."""
        self._write(sys.stdout.buffer, data)

    def write_error(self, data: bytes) -> None:
        """Writes bytes to stderr."""
        self._write(sys.stderr.buffer, data)

    def say(self, message: str) -> None:
        """Writes a line of the launcher itself to stderr."""
        self.write_error(f"{PROGRAM}: {message}\n".encode(errors="replace"))

    def _write(self, stream: BinaryIO, data: bytes) -> None:
        try:
            unwritten = memoryview(data)
            # Without a buffer, as under PYTHONUNBUFFERED, only a part may be written.
            while unwritten:
                unwritten = unwritten[stream.write(unwritten) :]
            stream.flush()
        except OSError:
            # Bytes that are still in the buffer would fail again, also when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

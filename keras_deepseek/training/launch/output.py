"""The launcher's own stdout and stderr."""

import os
import sys
from typing import BinaryIO

PROGRAM = "keras-deepseek launch"


class Output:
    """Writes lines of the processes and of the launcher.

    A log that can't be written, as into a pipe whose reader has gone or on a full disk, does not
    end a training: what would come is dropped.
    """

    def write_out(self, data: bytes) -> None:
        """Writes to stdout.

        Args:
            data: bytes.
        """
        self._write(sys.stdout.buffer, data)

    def write_error(self, data: bytes) -> None:
        """Writes to stderr.

        Args:
            data: bytes.
        """
        self._write(sys.stderr.buffer, data)

    def say(self, message: str) -> None:
        """Writes a line of the launcher's own to stderr.

        Args:
            message: string.
        """
        self.write_error(f"{PROGRAM}: {message}\n".encode(errors="replace"))

    def _write(self, stream: BinaryIO, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:  # Without a buffer, as under PYTHONUNBUFFERED, it may take a part alone.
                left = left[stream.write(left) :]
            stream.flush()
        except OSError:
            # What is still buffered would fail again, also when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
